import pytest

from maskrcnn_lit.data.coco.categories import Category, match_categories
from maskrcnn_lit.errors import UserError

OWN = (Category(7, "cat"), Category(3, "dog"), Category(9, "emu"))


def test_labels_are_renumbered_by_name_and_ids_stay_those_of_the_json():
    table, labels = match_categories(
        OWN, (Category(1, "emu"), Category(2, "cat"), Category(3, "dog")), "a.json"
    )
    assert table == (Category(9, "emu"), Category(7, "cat"), Category(3, "dog"))
    assert labels.tolist() == [0, 2, 3, 1]


def test_a_class_that_no_data_has_gets_a_free_id():
    trained = (
        Category(1, "cat"),
        Category(2, "N/A 2"),
        Category(3, "dog"),
        Category(4, "emu"),
        Category(5, "N/A 5"),
    )
    table, labels = match_categories(OWN, trained, "a.json")
    assert [c.name for c in table] == [c.name for c in trained]
    assert [c.id for c in table] == [7, 10, 3, 9, 11]
    assert labels.tolist() == [0, 1, 3, 4]


def test_other_names_are_told_with_both_lists():
    with pytest.raises(UserError) as error:
        match_categories(
            OWN, (Category(1, "cat"), Category(2, "fox"), Category(3, "N/A 3")), "a.json"
        )
    said = "the categories of a.json are cat, dog, emu and those trained are cat, fox: only here dog, emu, "
    assert str(error.value) == said + "only there fox; give both the same names"


def test_of_many_names_the_first_are_told():
    many = [Category(i, f"class {i:02}") for i in range(80)]
    with pytest.raises(
        UserError, match=r"are class 00, class 01, .*class 11 and 68 more and those trained are cat"
    ):
        match_categories(many, OWN, "a.json")
