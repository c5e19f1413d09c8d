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


def test_a_trained_class_may_be_absent_and_an_unused_one_too_many():
    table, labels = match_categories(
        OWN, (Category(1, "dog"), Category(2, "fox")), "a.json", used={2}
    )
    assert table == (Category(3, "dog"), Category(10, "fox"))
    assert labels.tolist() == [0, 0, 1, 0]


def test_objects_of_a_class_that_was_not_trained_are_refused():
    trained = (Category(1, "Cat"), Category(2, "dog"), Category(3, "N/A 3"))
    with pytest.raises(UserError) as error:
        match_categories(OWN, trained, "a.json", used={1, 2})
    message = str(error.value)
    assert "a.json has objects of cat" in message
    assert "the trained classes are Cat, dog" in message
    assert "'cat' is spelled 'Cat' in training" in message


def test_no_common_class_is_refused():
    with pytest.raises(UserError, match="no trained class"):
        match_categories(OWN, (Category(1, "fox"),), "a.json", used=set())


def test_of_many_names_the_first_are_told():
    many = [Category(i, f"class {i:02}") for i in range(80)]
    with pytest.raises(UserError, match=r"class 00, class 01, .*class 11 and 68 more"):
        match_categories(many, OWN, "a.json")
