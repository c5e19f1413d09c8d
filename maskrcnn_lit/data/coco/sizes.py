"""COCO's sizes of objects: the one table that scores, analysis and statistics of the data use."""

# Sides in pixels of squares of the smallest and the largest area of a size, both included. An area
# on a limit belongs to both sizes, as in pycocotools.
SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, 1e5)}

# The same as areas, in pixels.
AREAS = {name: (low**2, high**2) for name, (low, high) in SIZES.items()}

# Sides in pixels at which the next size begins.
LIMITS = tuple(low for low, _ in SIZES.values())[1:]
