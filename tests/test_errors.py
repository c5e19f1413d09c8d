import pickle

from maskrcnn_lit.errors import UserError


def test_it_comes_back_from_another_process_as_it_was():
    """Loader processes pickle what they raise."""
    again = pickle.loads(pickle.dumps(UserError("image 7 is missing: mend it")))
    assert type(again) is UserError and str(again) == "image 7 is missing: mend it"
