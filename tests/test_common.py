"""What every room leans on: names are chosen in one sentence."""

import pytest

from lib.common.errors import UserError, choose


def test_a_known_name_passes_and_an_unknown_one_is_one_sentence_with_those_there_are():
    choose("criterion", "l1", {"l1": 1, "l2": 2})
    with pytest.raises(UserError) as error:
        choose("criterion", "l3", (name for name in ("l1", "l2")))
    assert str(error.value) == "Unknown criterion 'l3': expected one of l1, l2."


@pytest.mark.parametrize("name", [None, 3, ["l1"], {}, float("nan"), "L1", ""])
def test_no_value_of_another_type_is_a_name(name):
    with pytest.raises(UserError, match="Unknown criterion"):
        choose("criterion", name, ["l1"])
