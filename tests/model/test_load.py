"""Loading says plainly what is wrong, and a fingerprint changes with everything that KV depends on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build, local, tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, T5Config, T5ForConditionalGeneration

from agentmem.errors import InvalidInput, ModelLoadError, UnsupportedModel
from agentmem.model.local import LocalModel
from agentmem.model.positions import max_positions


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_saved_folder_loads(loaded: LocalModel, folder: Path) -> None:
    assert loaded.n_layers == 4
    assert loaded.hidden_size == 64
    assert loaded.max_positions == 512
    assert loaded.dtype == torch.float32
    assert loaded.device.type == "cpu"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = loaded.chat.encode("hello")
    again = LocalModel.load(str(folder), device="cpu")
    assert torch.equal(again.logits(ids), loaded.logits(ids))
    assert again.fingerprint == loaded.fingerprint


def test_dtype_can_be_chosen(folder: Path) -> None:
    assert LocalModel.load(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_checkpoint_in_bfloat16_is_float32_on_a_cpu(tmp_path: Path) -> None:
    build("llama", torch.bfloat16).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert LocalModel.load(tmp_path, device="cpu").dtype == torch.float32


def _remove(*names: str):
    def change(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return change


def _write(name: str, text: str):
    def change(path: Path) -> None:
        (path / name).write_text(text)

    return change


def _pickled_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _a_weight_less(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def _cut_short(path: Path) -> None:
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def _another_size(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))


def _code_of_its_own(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "evil.py").write_text(f"open({str(path / 'ran')!r}, 'w')")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "does not exist"),
        (_remove("config.json"), r"no config\.json"),
        (_write("config.json", "{"), "not JSON"),
        (_remove("model.safetensors"), "no weights"),
        (_pickled_only, "pickled"),
        (_remove("tokenizer.json"), "no tokenizer"),
        (_write("tokenizer.json", "{}"), "tokenizer"),
        (_a_weight_less, "lacks 1 of the model's weights"),
        (_cut_short, "could not be loaded"),
        (_another_size, "could not be loaded"),
        (_code_of_its_own, "no model config"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(copy: Path, change, says: str) -> None:
    change(copy)
    with pytest.raises(ModelLoadError, match=says) as caught:
        LocalModel.load(copy, device="cpu")
    assert str(copy) in str(caught.value)
    assert not (copy / "ran").exists()


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="not a folder"):
        LocalModel.load(folder / "config.json")
    with pytest.raises(ModelLoadError, match="empty"):
        LocalModel.load(" ")


def test_models_that_do_not_generate_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertConfig(vocab_size=300, **small)
    t5 = T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    cases = ((BertForMaskedLM(bert), "from left to right"), (BertModel(bert), "from left to right"))
    for number, (model, says) in enumerate((*cases, (T5ForConditionalGeneration(t5), "encoder-decoder"))):
        path = tmp_path / str(number)
        model.save_pretrained(path)
        tokenizer().save_pretrained(path)
        with pytest.raises(ModelLoadError, match=says):
            LocalModel.load(path, device="cpu")


def test_learned_positions_are_refused_at_load(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="gpt2"):
        LocalModel.load(tmp_path, device="cpu")


def test_unknown_devices_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="not a device"):
        LocalModel.load(folder, device="toaster")


def _retold(path: Path, change) -> str:
    change(path)
    return LocalModel.load(path, device="cpu").fingerprint


def test_the_fingerprint_follows_everything_that_kv_depends_on(loaded: LocalModel, folder: Path, copy: Path) -> None:
    seen = {loaded.fingerprint}

    def weight(path: Path) -> None:
        weights = load_file(path / "model.safetensors")
        weights["model.layers.3.self_attn.v_proj.weight"][0, 0] += 1e-3
        save_file(weights, path / "model.safetensors", {"format": "pt"})

    def theta(path: Path) -> None:
        text = (path / "config.json").read_text()
        (path / "config.json").write_text(text.replace("10000.0", "20000.0"))

    def template(path: Path) -> None:
        (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    def vocabulary(path: Path) -> None:
        spec = json.loads((path / "tokenizer.json").read_text())
        vocab = spec["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        (path / "tokenizer.json").write_text(json.dumps(spec))

    for change in (weight, theta, template, vocabulary):
        fingerprint = _retold(copy, change)
        assert fingerprint not in seen, change.__name__
        seen.add(fingerprint)
    assert LocalModel.load(folder, device="cpu", dtype=torch.bfloat16).fingerprint not in seen
    assert len(loaded.fingerprint) == 64


def test_the_fingerprint_does_not_follow_what_kv_does_not_depend_on(loaded: LocalModel, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "5.0.0"}))
    model = LocalModel.load(copy, device="cpu")
    model.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert model.fingerprint == loaded.fingerprint


def test_the_kv_fingerprint_names_the_recipe(loaded: LocalModel) -> None:
    assert loaded.kv_fingerprint("parallel/1") == loaded.kv_fingerprint("parallel/1")
    assert len({loaded.fingerprint, loaded.kv_fingerprint("parallel/1"), loaded.kv_fingerprint("parallel/2")}) == 3


@pytest.mark.parametrize(
    ("name", "positions"),
    [("llama", 512), ("llama_yarn", 512), ("llama_dynamic", 64), ("phi3_longrope", 64), ("gemma3", 512)],
)
def test_max_positions(name: str, positions: int) -> None:
    assert local(name).max_positions == positions


def test_max_positions_from_a_config_alone() -> None:
    class Config:
        max_position_embeddings: int | None = 32768
        rope_parameters: dict[str, object] | None = None

    config = Config()
    assert max_positions(config) == 32768
    config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert max_positions(config) == 131072
    config.rope_parameters = {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}
    assert max_positions(config) == 4096
    config.max_position_embeddings = config.rope_parameters = None
    assert max_positions(config) == 2048


def test_a_softcap_is_never_left_out() -> None:
    """Some releases of transformers ignore it under sdpa, the default: then plain and reading logits would not fit."""
    assert local("gemma2").model.config._attn_implementation == "eager"
