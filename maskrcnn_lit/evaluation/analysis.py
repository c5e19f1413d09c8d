"""Why a detector scores as it does: every number of the error analysis of one set of results, as plain data.

`analyse` returns a dict that json can hold. A number that is not defined (no such object) is None. Schema:

{"kind": "mask" | "box",                what IoU means below: of masks where the results have them, else of boxes
 "images": n, "objects": n, "detections": n,    crowd regions are no objects; detections: after the limit an image
 "crowded_from": n,                     an image with at least so many objects is crowded
 "per_class": [{"name", "objects", "detections", "box_ap", "mask_ap", "mask_ap50", "mask_ap_small",
                "mask_ap_medium", "mask_ap_large", "boundary_ap", "threshold", "precision", "recall", "f1"}],
                                        AP 0..1, mask_... and boundary_ap None without masks; threshold: the score of
                                        the highest F1 at IoU 0.5, the three after it hold there
 "curves": [{"name", "recall": [...], "precision": [...], "thresholds": [...], "f1": [...]}],
                                        one entry a class and the last one "all classes", pooled. Of one length, at
                                        most 201; thresholds fall, point i counts the detections from thresholds[i] on
 "confusion": {"iou": 0.5, "labels": [..., "background"], "counts": [[...]]},       rows truth, columns prediction
 "errors": {"ap50": x, "classification": d, "localisation": d, "both": d, "duplicate": d, "background": d,
            "missed": d, "false_positives": d, "false_negatives": d, "counts": {"classification": n, ..., "missed": n}},
                                        d: the AP50 that mending it would bring, 0..1
 "occlusion": [{"slice": "0 to 0.1", "objects": n, "ap": x, "ap50": x, "recall": x}, {"slice": "0.1 to 0.4", ...},
               {"slice": "over 0.4", ...}, {"slice": "crowded images", ...}],
 "box_ap": x, "mask_ap": x | None, "boundary_ap": x | None,
 "calibration": {"bins": [{"from", "to", "score", "precision", "count"}], "error": x},      ten bins; score: the mean
 "worst": [{"image_id", "missed": [annotation ids], "false": [indices into results], "merged": [indices]}]}
"""
