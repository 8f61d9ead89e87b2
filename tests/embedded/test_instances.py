"""Instances: fields of equal length, indexing, concatenation."""

import copy
import pickle

import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances


def make():
    return Instances((4, 5), gt_classes=torch.arange(3), names=["a", "b", "c"])


def test_fields_and_attributes():
    inst = make()
    inst.gt_boxes = Boxes(torch.ones(3, 4))
    inst._private = 7  # not a field
    assert inst.image_size == (4, 5) and len(inst) == 3
    assert set(inst.get_fields()) == {"gt_classes", "names", "gt_boxes"}
    assert inst.has("names") and not inst.has("_private") and inst.get("names") is inst.names
    inst.get_fields()["live"] = [1, 2, 3]
    assert inst.live == [1, 2, 3]
    inst.remove("live")
    assert not inst.has("live")
    inst.names = ["x", "y", "z"]  # replaces
    assert inst.names == ["x", "y", "z"]


def test_field_lengths_must_agree():
    inst = make()
    with pytest.raises(AssertionError, match="length 2"):
        inst.scores = torch.zeros(2)
    with pytest.raises(AssertionError, match="length 1"):
        Instances((1, 1), a=[1, 2], b=[1])


def test_image_size_is_read_only():
    with pytest.raises((AttributeError, AssertionError)):
        make().image_size = (1, 2)


@pytest.mark.embedded_only
def test_image_size_message():
    with pytest.raises(AttributeError, match="read-only"):
        Instances((1, 1)).image_size = (1, 2)


def test_missing_fields():
    inst = make()
    with pytest.raises(AttributeError, match="'foo'"):
        _ = inst.foo
    assert not hasattr(inst, "foo")
    with pytest.raises(KeyError):
        inst.get("foo")
    with pytest.raises(KeyError):
        inst.remove("foo")


def test_no_length_without_fields_and_no_iteration():
    with pytest.raises(NotImplementedError, match="__len__|no length"):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError, match="itera"):
        iter(make())


def test_int_index_keeps_one_row():
    inst = make()
    assert inst[1].gt_classes.tolist() == [1] and inst[1].names == ["b"]
    assert inst[-1].gt_classes.tolist() == [2] and inst[-1].names == ["c"]
    assert inst[0].image_size == (4, 5)
    for i in (3, -4):
        with pytest.raises(IndexError, match="out of range"):
            inst[i]


def test_slice_and_tensor_index():
    inst = Instances((4, 5), classes=torch.arange(3), boxes=Boxes(torch.arange(12.0).view(3, 4)))
    assert inst[1:].classes.tolist() == [1, 2]
    assert inst[torch.tensor([2, 0])].boxes.tensor[:, 0].tolist() == [8, 0]
    picked = inst[torch.tensor([False, True, False])]
    assert picked.classes.tolist() == [1] and picked.image_size == (4, 5)
    assert len(inst[torch.tensor([], dtype=torch.long)]) == 0


def test_to_calls_to_where_it_exists():
    out = make().to(torch.float64)
    assert out.gt_classes.dtype == torch.float64 and out.names == ["a", "b", "c"]


def test_cat():
    masks = BitMasks(torch.ones(3, 4, 5))
    a, b = make(), make()[:1]
    a.masks, b.masks = masks, masks[0]
    b.extra = [0]  # only the first element's fields count
    out = Instances.cat([a, b])
    assert out.gt_classes.tolist() == [0, 1, 2, 0] and out.names == ["a", "b", "c", "a"]
    assert out.masks.tensor.shape == (4, 4, 5) and not out.has("extra")
    assert out.image_size == (4, 5)
    assert Instances.cat([a]) is a  # as it is
    assert len(a.cat([a, b])) == 4  # static, callable on an instance


def test_cat_refuses():
    with pytest.raises(AssertionError):
        Instances.cat([])
    with pytest.raises(AssertionError):
        Instances.cat([Instances((1, 1), x=[1]), Instances((1, 2), x=[1])])
    with pytest.raises(ValueError, match="tuple"):
        Instances.cat([Instances((1, 1), x=(1,)), Instances((1, 1), x=(1,))])


@pytest.mark.embedded_only
def test_cat_messages():
    with pytest.raises(AssertionError, match="at least one"):
        Instances.cat([])
    with pytest.raises(AssertionError, match="different image sizes"):
        Instances.cat([Instances((1, 1), x=[1]), Instances((1, 2), x=[1])])
    with pytest.raises(ValueError, match="add a `cat`"):
        Instances.cat([Instances((1, 1), x=(1,)), Instances((1, 1), x=(1,))])


def test_repr_and_copies():
    inst = make()
    text = (
        "Instances(num_instances=3, image_height=4, image_width=5, "
        "fields=[gt_classes: tensor([0, 1, 2]), names: ['a', 'b', 'c']])"
    )
    assert repr(inst) == str(inst) == text
    for clone in (copy.deepcopy(inst), pickle.loads(pickle.dumps(inst))):
        clone.gt_classes[0] = 9
        assert len(clone) == 3 and clone.image_size == (4, 5)
    assert inst.gt_classes[0] == 0


@pytest.mark.embedded_only
def test_repr_without_fields():
    assert repr(Instances((1, 2))) == ("Instances(num_instances=0, image_height=1, image_width=2, fields=[])")
