"""From step 1 to step 2, and from a teacher to its student: what is carried over, what is not, and errors."""

import pytest
import torch

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from projects.LabelEnc import export_step1, merge_step1, read_step1
from projects.LabelEnc.export import fpn_of
from projects.LabelEnc.teacher import Teacher
from shared.checkpoint import WeightsCheckpointer
from shared.errors import UserError
from tests.paths import ROOT

from .hosts import CLASSES, enc_config, enc_host, host_config, make_batch, plain_host

HOSTS = ["retinanet", "fcos", "mask_rcnn_fpn"]


def parts(model):
    """State of encoder, head, FPN and body."""
    state = model.state_dict()
    below = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return {
        "encoder": {k.removeprefix("label_enc.encoder."): v for k, v in state.items() if ".encoder." in k},
        "head": {k: v for k, v in state.items() if not k.startswith(("backbone.", "label_enc."))},
        "fpn": {k: v for k, v in below.items() if not k.startswith("bottom_up.")},
        "body": {k: v for k, v in below.items() if k.startswith("bottom_up.")},
    }


def equal(a, b):
    assert a.keys() == b.keys() and len(a) > 2
    return all(torch.equal(a[k], b[k]) for k in a)


def start(model):
    """Step 2 begins as train_net.py begins it, with nothing in the initial file."""
    WeightsCheckpointer(model).begin_new_run()
    return parts(model)


@pytest.fixture(params=HOSTS)
def step1(request, tmp_path):
    """(name of the host, its step-1 model, the exported file, a checkpoint)."""
    model = enc_host(request.param, seed=7)
    torch.save(export_step1(model), tmp_path / "label_encoder.pth")
    torch.save({"model": model.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    return request.param, model, str(tmp_path / "label_encoder.pth"), str(tmp_path / "model_final.pth")


@pytest.mark.parametrize("source", ["exported", "checkpoint"])
def test_carry_over(step1, source):
    """Head, encoder, and the FPN from the encoder's; the body of the backbone stays."""
    name, model, *files = step1
    student = enc_host(name, seed=8, mode="step2", step1_weights=files[source == "checkpoint"])
    before = {k: v.clone() for k, v in student.state_dict().items()}
    after = start(student)
    old, new = parts(model), parts(student)
    assert equal(new["encoder"], old["encoder"]) and equal(new["head"], old["head"])
    assert equal(new["fpn"], fpn_of(old["encoder"])) and not equal(new["fpn"], old["fpn"])
    assert all(torch.equal(v, before["backbone." + k]) for k, v in after["body"].items())
    adapt = [k for k in before if k.startswith("label_enc.adapt.")]
    assert adapt and all(torch.equal(student.state_dict()[k], before[k]) for k in adapt)


def test_exported_file(step1):
    name, model, file, checkpoint = step1
    exported, whole = read_step1(file), read_step1(checkpoint)
    assert set(exported) == {"encoder", "head", "meta"} and set(whole) == {*exported, "fpn"}
    host, strides = {"retinanet": ("RetinaNet", 8), "fcos": ("FCOS", 8)}.get(name, ("GeneralizedRCNN", 4))
    assert exported["meta"]["host"] == host and exported["meta"]["num_classes"] == CLASSES
    assert exported["meta"]["channels"] == whole["meta"]["channels"] == 32 and whole["meta"]["num_classes"] == CLASSES
    assert list(exported["meta"]["levels"].values()) == [strides * 2**i for i in range(5)]
    old = parts(model)
    for part in ("encoder", "head"):
        assert equal(exported[part], old[part]) and equal(whole[part], old[part])
    assert equal(whole["fpn"], old["fpn"])


@pytest.mark.parametrize("init_head", [True, False])
@pytest.mark.parametrize("init_fpn", ["encoder", "step1", "none"])
def test_switches(step1, init_head, init_fpn):
    name, model, _, checkpoint = step1
    old = parts(model)
    options = dict(init_head=init_head, init_fpn=init_fpn, step1_weights=checkpoint)
    student = enc_host(name, seed=8, mode="step2", **options)
    own = {k: {n: v.clone() for n, v in p.items()} for k, p in parts(student).items()}
    after = start(student)
    assert equal(after["head"], old["head"] if init_head else own["head"])
    wanted = {"encoder": fpn_of(old["encoder"]), "step1": old["fpn"], "none": own["fpn"]}[init_fpn]
    assert equal(after["fpn"], wanted)
    assert equal(after["encoder"], old["encoder"])


def test_without_the_distance_head_and_pyramid_still_start_from_step1(step1):
    """Table 5's "initialization" alone: no encoder in the model."""
    name, model, file, _ = step1
    student = enc_host(name, seed=8, mode="step2", weight_dis=0.0, step1_weights=file)
    after, old = start(student), parts(model)
    assert after["encoder"] == {} and equal(after["head"], old["head"])
    assert equal(after["fpn"], fpn_of(old["encoder"]))


@pytest.fixture
def retinanet_file(tmp_path):
    torch.save(export_step1(enc_host(seed=7)), tmp_path / "step1.pth")
    return str(tmp_path / "step1.pth")


def test_another_backbone_takes_what_fits(retinanet_file, caplog):
    """A body of other widths: laterals and P6 stay as they are, and the log names them; the rest is the encoder's."""
    config = enc_config("retinanet", mode="step2", step1_weights=retinanet_file)
    config.backbone.bottom_up.stages.res2_channels = 12
    config.backbone.top_block.in_channels = 96
    torch.manual_seed(8)
    student = instantiate(config)
    own = {k: v.clone() for k, v in parts(student)["fpn"].items()}
    with caplog.at_level("WARNING", logger="projects"):
        after = start(student)
    encoder = read_step1(retinanet_file)["encoder"]
    skipped = {k for k, v in after["fpn"].items() if v.shape != encoder[k].shape}
    assert skipped == {f"fpn_lateral{i}.weight" for i in (3, 4, 5)} | {"top_block.p6.weight"}
    assert all(k in caplog.text for k in skipped)
    for key, value in after["fpn"].items():
        assert torch.equal(value, own[key] if key in skipped else encoder[key])


def test_files_that_do_not_fit(retinanet_file, tmp_path):
    def error(name="retinanet", change=None, **options):
        config = enc_config(name, mode="step2", **{"step1_weights": retinanet_file, **options})
        if change:
            change(config)
        with pytest.raises(UserError) as info:
            start(instantiate(config))
        return str(info.value)

    assert "with num_classes 5, this one has 4" in error(change=lambda c: c.update(num_classes=4))
    assert "with host RetinaNet, this one has FCOS" in error("fcos")

    def no_top(config):
        config.backbone.top_block = None
        config.head_in_features = ["p3", "p4", "p5"]
        config.head.input_shape = config.head.input_shape[:3]
        config.anchor_generator.update(sizes=config.anchor_generator.sizes[:3], strides=[8, 16, 32])

    assert "with levels {'p3': 8, 'p4': 16, 'p5': 32, 'p6': 64, 'p7': 128}, this one has" in error(change=no_top)
    text = error(change=lambda c: c.head.update(conv_dims=[32, 32]))
    assert "head.cls_subnet.2.weight (not in the file); head.bbox_subnet.2" not in text  # sorted
    assert all(f"head.{t}_subnet.2.{k} (not in the file)" in text for t in ("cls", "bbox") for k in ("weight", "bias"))
    text = error(res2_out=16)
    assert "label_enc.encoder.bottom_up.stages.stage2.0.expand.weight (8, 2, 1, 1), in the model (16, 4, 1, 1)" in text
    assert "set model.label_enc.step1_weights" in error(step1_weights="")
    assert "'gone.pth' does not exist" in error(step1_weights="gone.pth")
    assert "init_fpn (INIT_FPN) 'step1'" in error(init_fpn="step1")
    torch.save({"model": plain_host().state_dict()}, tmp_path / "plain.pth")
    assert "no entries label_enc.encoder.*" in error(step1_weights=str(tmp_path / "plain.pth"))


def test_construction_and_evaluation_need_no_file():
    model = enc_host(mode="step2", step1_weights="gone.pth").eval()
    with torch.no_grad():
        assert len(model(make_batch())) == 2


def test_merged_checkpoint_starts_step2_by_itself(retinanet_file, tmp_path):
    """In a run without step1_weights: the same weights as with them."""
    torch.save({"model": plain_host(seed=9).state_dict()}, tmp_path / "init.pth")
    model = enc_host(seed=8, mode="step2", step1_weights=retinanet_file)
    torch.save(merge_step1(model, str(tmp_path / "init.pth")), tmp_path / "merged.pth")
    other = enc_host(seed=10, mode="step2")
    checkpointer = WeightsCheckpointer(other)
    checkpointer.load(str(tmp_path / "merged.pth"), checkpointables=[])
    checkpointer.begin_new_run()
    assert equal(dict(other.state_dict()), dict(model.state_dict()))
    new, old = parts(other), read_step1(retinanet_file)
    assert equal(new["head"], old["head"]) and equal(new["body"], parts(plain_host(seed=9))["body"])


@pytest.fixture
def teacher(tmp_path):
    """A run's config.yaml and checkpoint of a plain RetinaNet, and the model."""
    model = plain_host(seed=11)
    cfg = LazyConfig.load(str(ROOT / "tests/tiny/faster_rcnn.py"))
    cfg.model = host_config()
    for part in (cfg.dataloader.train, cfg.dataloader.test):
        part.dataset.names.update(json_file="unused.json", image_root="unused")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return dict(teacher_config=str(tmp_path / "config.yaml"), teacher_weights=str(tmp_path / "model.pth")), model


def distance_of(model, batch):
    with EventStorage(0):
        return model(batch)["labelenc/loss_dis"]


def test_teacher_stays_outside(teacher):
    """Not in the state dict or the modules, before and after its first use; its maps are the targets."""
    files, model = teacher
    student = enc_host(seed=8, mode="kd", **files)
    assert student.label_enc.encoder is None
    names = set(student.state_dict())
    assert {n.split(".")[1] for n in names if n.startswith("label_enc.")} == {"adapt"}
    loss = distance_of(student, make_batch())
    assert set(student.state_dict()) == names and not any(
        m is student.label_enc.teacher.model for m in student.modules()
    )
    images = student.preprocess_image(make_batch()).tensor
    with torch.no_grad():
        torch.testing.assert_close(loss, student.label_enc.distance(student.backbone(images), model.backbone(images)))
    loss.backward()
    assert not student.label_enc.teacher.model.training
    assert all(p.grad is None and not p.requires_grad for p in student.label_enc.teacher.model.parameters())
    assert any(p.grad.any() for n, p in student.named_parameters() if n.startswith("label_enc.adapt"))


def test_teacher_in_its_own_normalisation_and_channel_order(teacher):
    """A student that reads RGB, normalised otherwise, has the same picture in another form: the targets are equal."""
    files, model = teacher
    config = enc_config(mode="kd", **files)
    config.update(input_format="RGB", pixel_mean=[1.0, 2.0, 3.0], pixel_std=[4.0, 5.0, 6.0])
    student = instantiate(config)
    rgb = [{**x, "image": x["image"].flip(0)} for x in make_batch()]
    wanted = model.backbone(model.preprocess_image(make_batch()).tensor)
    like = student.backbone(student.preprocess_image(rgb).tensor)
    targets = student.label_enc.teacher.features(student, rgb, like)
    assert all(torch.equal(targets[level], wanted[level]) for level in wanted)


def test_student_that_does_not_know_its_channel_order(teacher):
    """FCOS has no input_format: LabelEnc's says it, and the teacher sees its own order."""
    files, model = teacher
    like = model.backbone(model.preprocess_image(make_batch()).tensor)
    rgb = [{**x, "image": x["image"].flip(0)} for x in make_batch()]
    student = enc_host("fcos", mode="kd", input_format="RGB", **files)
    targets = student.label_enc.teacher.features(student, rgb, like)
    assert all(torch.equal(targets[level], like[level]) for level in like)
    student = enc_host("fcos", mode="kd", **files)
    with pytest.raises(UserError, match="FCOS does not say: set model.label_enc.input_format"):
        student.label_enc.teacher.features(student, rgb, like)


@pytest.mark.parametrize("init_head", [True, False])
@pytest.mark.parametrize("init_fpn", ["encoder", "none"])
def test_student_starts_from_its_teacher(teacher, init_head, init_fpn):
    files, model = teacher
    student = enc_host(seed=8, mode="kd", init_head=init_head, init_fpn=init_fpn, **files)
    own = {k: {n: v.clone() for n, v in p.items()} for k, p in parts(student).items()}
    after, theirs = start(student), parts(model)
    assert equal(after["head"], theirs["head"] if init_head else own["head"])
    assert equal(after["fpn"], theirs["fpn"] if init_fpn == "encoder" else own["fpn"])
    assert equal(after["body"], own["body"]) and student.label_enc.teacher.model is None


def test_teachers_that_do_not_fit(teacher, tmp_path):
    files, _ = teacher
    with pytest.raises(UserError, match="set model.label_enc.teacher_config"):
        start(enc_host(mode="kd"))
    with pytest.raises(UserError, match="set model.label_enc.teacher_config"):
        distance_of(enc_host(mode="kd", teacher_config=files["teacher_config"]), make_batch())
    torch.save({"model": plain_host("fcos").state_dict()}, tmp_path / "fcos.pth")
    with pytest.raises(UserError, match="another architecture"):
        Teacher(files["teacher_config"], str(tmp_path / "fcos.pth")).build()
    with pytest.raises(UserError, match="the teacher's maps are .'p3'.*the student's .'p2'"):
        distance_of(enc_host("faster_rcnn_fpn", mode="kd", **files), make_batch())
    student = enc_config("retinanet", mode="kd", **files)
    student.num_classes = 4
    with pytest.raises(UserError, match=r"teacher's weights.*head.cls_score.weight \(45.*in the model \(36"):
        start(instantiate(student))
