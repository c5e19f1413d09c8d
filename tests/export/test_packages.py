import sys

import pytest

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export.packages import EXTRAS, openvino_core, package


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"^this needs the package {name}, .*\[{EXTRAS[name]}\]'$"):
        package(name, "this")


def test_a_package_that_is_there_comes_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", sys)
    assert package("openvino", "this") is sys


def test_openvino_has_one_core():
    assert openvino_core() is openvino_core()
