"""What the files of models from elsewhere (the one aligned, and judges) tell `check` before any work.

A folder's files are read, and those of a hub id as far as they are in the local cache. Of weights only the headers are, so a model of any size takes
a second or two, but for a folder's digest, for which it is read whole.
"""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from plumbline.consistency import Configs, Node, settings, where
from plumbline.graph import Params
from plumbline.models.architecture import HubModel
from plumbline.models.model_files import ModelFiles, local_files
from plumbline.models.size import parameter_count, wrong_size
from plumbline.models.suitability import known_reason, refusal
from plumbline.pipeline.composing import sizes
from plumbline.pipeline.digests import content_digest, pin_problems, wrong_pin

LOADING: Set[Node] = {("prepare", None), ("pretrain", None)}
"""The nodes that load the model that is aligned."""


class FromElsewhere(NamedTuple):
    """A model that a recipe names and no stage makes."""

    file: str
    """The file of conf/ that names it."""
    member: str
    """What leads to its keys in that file: `members.<name>.` for a judge of a panel, else empty."""
    path: str
    revision: str | None
    device: str = "cpu"
    """Where a judge answers."""


def judges_from_elsewhere(configs: Configs, params: Params) -> list[FromElsewhere]:
    """The models of judges, without those that a stage has yet to make; each once."""
    models = []
    for (stage, name), config in configs.items():
        judge = getattr(config, "judge", None)
        if judge is None:
            continue
        section = params[stage]
        file = f"conf/judge/{(section[name] if name else section)['judge']}.yaml"
        members = {f"members.{key}.": values for key, values in getattr(judge, "members", {}).items()}
        for member, values in ({"": vars(judge)} | members).items():
            path, revision = str(values.get("model", "")), values.get("revision")
            if values.get("backend") == "transformers" and path and Path(path).parts[:1] != ("artifacts",):
                device = str(values.get("device", "cpu"))
                models.append(FromElsewhere(file, member, path, None if revision is None else str(revision), device))
    return list(dict.fromkeys(models))


def wrong_models(configs: Configs, params: Params, made: Set[Node] = frozenset()) -> Iterator[str]:
    """Errors for models that cannot do what the recipe wants of them, by their files.

    made: the nodes whose outputs are there. A model that no other node loads may be missing.
    """
    prepare = configs.get(("prepare", None))
    if prepare is None:
        return
    yield from _wrong_base(configs, prepare.model, f"conf/model/{params['model']}.yaml", needed=bool(LOADING - made))
    needed = judges_from_elsewhere({node: config for node, config in configs.items() if node not in made}, params)
    for judge in judges_from_elsewhere(configs, params):
        there = not pin_problems(judge.path, judge.revision)  # which the judge's own values complain of
        if there and (reason := known_reason(judge.path, judge.revision, trained=False, needed=judge in needed)):
            yield f"{judge.file}: {judge.member}model: no causal LM can be loaded from {judge.path!r}: {reason}."


def _wrong_base(configs: Configs, model: Any, file: str, *, needed: bool) -> Iterator[str]:
    """Errors for the model that is aligned: of a wrong kind, or else of another size, with an unfit tokenizer, or with too short a context."""
    if not isinstance(model, HubModel):
        yield from _no_room(configs, model.context_tokens)
        return
    if pin_problems(model.path, model.revision):  # which its own values complain of
        return
    if reason := known_reason(model.path, model.revision, needed=needed):
        yield f"{file}: {refusal(model.path, reason)}"
        return
    files = local_files(model.path, model.revision)
    count = parameter_count(model.path, model.revision)
    if count and model.size in sizes() and (complaint := wrong_size(model.size, count)):
        yield f"{file}: {complaint}"
    if files and (complaint := _wrong_tokenizer(model, files)):
        yield f"{file}: {complaint}"
    yield from _no_room(configs, model.context_tokens, _own_context(files) if files else None)


def _wrong_tokenizer(model: HubModel, files: ModelFiles) -> str:
    """A complaint about a tokenizer or a chat template that cannot be used, if all files are there; empty if there is none."""
    from plumbline.models.tokenizers import own_tokenizer

    complete = files.has_weights() and files.has_vocabulary() and (files.folder / "tokenizer_config.json").is_file()
    if not files.whole and not complete:
        return ""
    try:
        own_tokenizer(model, files.folder)
    except ValueError as error:
        return str(error)
    return ""


def _own_context(files: ModelFiles) -> int | None:
    """The longest sequence that a model can read, in tokens, as its config.json states it; None if it states no limit."""
    from transformers import AutoConfig

    from plumbline.models.loading import context_of

    return context_of(AutoConfig.from_pretrained(files.folder))


def _no_room(configs: Configs, context_tokens: int | None, own: int | None = None) -> Iterator[str]:
    """Answers that could be as long as the model's whole context, in which the prompt has to stand as well.

    context_tokens: as the model's file in conf/model says; own: as the model's config.json says.
    """
    context, what = min(
        ((tokens, what) for tokens, what in ((context_tokens, "context_tokens"), (own, "own context in tokens")) if tokens),
        default=(None, ""),
    )
    for node, config in configs.items():
        longest = getattr(settings(node, config), "max_new_tokens", 0) if node[0] in ("sample", "rl", "answer") else 0
        if context and longest >= context:
            at = "params.yaml: evaluate" if node[0] == "answer" else where(node)
            yield f"{at}.max_new_tokens: expected fewer than the model's {what}, {context}, found {longest}"


def wrong_revisions(configs: Configs, params: Params) -> Iterator[str]:
    """Errors for model folders that a sound recipe names and that are not what their `revision` says. It reads them whole, a gigabyte in a second."""
    model = configs["prepare", None].model
    base = FromElsewhere(f"conf/model/{params['model']}.yaml", "", getattr(model, "path", ""), getattr(model, "revision", None))
    for one in [*([base] if isinstance(model, HubModel) else []), *judges_from_elsewhere(configs, params)]:
        folder = Path(one.path)
        if folder.is_dir() and (complaint := wrong_pin(folder, content_digest(folder), one.revision)):
            yield f"{one.file}: {one.member}revision: {complaint}"
