import json
import sys

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.packages import import_package


def test_a_package_that_is_there_comes_back():
    assert import_package("json", "extra", "this") is json


@pytest.mark.parametrize("name", ["json", "json.decoder"])
def test_a_missing_one_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r"^this needs the package json, .*: pip install 'maskrcnn_lit\[extra\]'$"
    ):
        import_package(name, "extra", "this")
