"""A model that is to take the place of the one that is served is compared with it first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minisgl.engines import served_model
from minisgl.ipc.messages import NamedModel
from minisgl.model_files.sizes import ModelSizes, model_sizes
from minisgl.successors import difference
from minisgl.tokenizer.description import Description, Wanted, look_for
from tests.python.server.byte_tokenizer import TEMPLATE, make_backend


def make_folder(folder: Path, template: str = TEMPLATE, **config: object) -> Path:
    """A model without weights."""
    folder.mkdir()
    make_backend().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    sizes = {"vocab_size": 300, "max_position_embeddings": 1000}
    (folder / "config.json").write_text(json.dumps({**sizes, **config}))
    return folder


def described(folder: Path, chat_template: str | None = None) -> Description:
    found = look_for(
        Wanted(
            model=str(folder),
            revision=None,
            weights=False,
            chat_template=chat_template,
            parent=os.getpid(),
        )
    )
    assert found.error == ""
    return found


def test_what_would_change_requests_is_named(tmp_path: Path) -> None:
    served = described(make_folder(tmp_path / "served"))
    same = described(make_folder(tmp_path / "same"))
    assert difference(same, served, 1000) == ""
    longer = described(make_folder(tmp_path / "longer", max_position_embeddings=2000))
    assert difference(longer, served, 1000) == ""
    template = described(make_folder(tmp_path / "template", "{{ messages }}"))
    assert difference(template, served, 1000).startswith("has another chat template than")
    ends = described(make_folder(tmp_path / "ends", eos_token_id=[5, 6]))
    assert difference(ends, served, 1000).startswith("has another set of end tokens than")
    wide = described(make_folder(tmp_path / "wide", vocab_size=400))
    assert "a vocabulary of 400 tokens, and 300 are served" in difference(wide, served, 1000)
    short = described(make_folder(tmp_path / "short", max_position_embeddings=500))
    assert "a context of 500 tokens, and requests of 1000" in difference(short, served, 1000)
    assert difference(short, served, 400) == ""  # --max-model-len 400 has served no more
    other = make_folder(tmp_path / "other")
    backend = make_backend()
    backend.add_tokens(["one more"])
    backend.save(str(other / "tokenizer.json"))
    assert difference(described(other), served, 1000).startswith("has another tokenizer than")


def test_a_template_that_stands_in_for_the_models_own_is_the_one_that_counts(
    tmp_path: Path,
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    one = described(make_folder(tmp_path / "one"), str(file))
    other = described(make_folder(tmp_path / "other", "{{ 5 }}"), str(file))
    assert difference(one, other, 1000) == ""


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    wanted = Wanted(model=str(tmp_path), revision=None, weights=False, chat_template=None, parent=0)
    assert "has no config.json: it is not a model" in look_for(wanted).error


def test_sizes_stand_in_the_text_part_of_a_model_that_has_several(tmp_path: Path) -> None:
    inner = {"vocab_size": 7, "max_position_embeddings": 9}
    assert model_sizes(str(make_folder(tmp_path / "m", text_config=inner))) == ModelSizes(7, 9)
    unknown = make_folder(tmp_path / "unknown", vocab_size="x", max_position_embeddings=True)
    assert model_sizes(str(unknown)) == ModelSizes(None, None)


@pytest.mark.parametrize(
    ("path", "named", "commit"),
    [
        ("/m/folder", NamedModel("/m/folder"), ""),
        ("/hub/models--org--name/snapshots/0a1b", NamedModel("org/name", "main"), "0a1b"),
        ("/hub/models--org--name/snapshots/0a1b/x.gguf", NamedModel("org/name:Q4_0"), "0a1b"),
    ],
)
def test_a_revision_is_shown_as_the_commit_that_it_is_and_other_hosts_look_for_that(
    path: str, named: NamedModel, commit: str
) -> None:
    model = served_model(path, named, commit)
    assert (model.name, model.revision) == (named.model, commit)
    assert model.named == NamedModel(named.model, commit or None)
    assert model != served_model(path, named, commit)  # a folder may have changed since
