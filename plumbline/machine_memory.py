"""Whether the model that a recipe aligns fits the memory of this machine, at every node: by the headers of its weights, before any work.

All numbers are what is needed at least, so that nothing is refused that could run: activations, caches and libraries come on top.
"""

from collections.abc import Iterator

from plumbline.consistency import Configs, settings, where
from plumbline.graph import Params
from plumbline.hub_models import judges_from_elsewhere
from plumbline.models.architecture import HubModel
from plumbline.models.memory import total_memory
from plumbline.models.model_files import CONFIG, local_files, tensors_of
from plumbline.models.training_memory import EMBEDDINGS, OUTPUT, Size, gib, memory_problem, size_by_shapes, trains_weights

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a weight, by its precision."""

NOT_LOADED = (".attn.bias", ".attn.masked_bias", ".inv_freq", ".position_ids", "mtp.")
"""Ends, or parts of names with a dot behind, of tensors in published files that transformers does not load: masks, tables, heads that guess ahead."""


def memory_problems(configs: Configs, params: Params) -> list[str]:
    """Errors for nodes of a sound recipe that need more memory than there is.

    Left out are what several processes or workers share, and a server's memory.
    """
    model, file = configs["prepare", None].model, f"conf/model/{params['model']}.yaml"
    size = least_size(model.path, model.revision, model.dtype) if isinstance(model, HubModel) else None
    problems = [] if size is None else [*_not_readable(configs, size, file)] or [*_not_trainable(configs, size)]
    return [*problems, *_judges_too_large(configs, params)]


def least_size(path: str, revision: str | None, dtype: str | None = None) -> Size | None:
    """The size that a folder or a hub id has at least, once it is loaded; None if its headers cannot be read.

    dtype: the precision in which it is loaded; None for its own.
    """
    if not (tensors := tensors_of(path, revision)):
        return None
    files = local_files(path, revision)
    config = (files and files.json(CONFIG)) or {}
    shapes = {
        name: tensor.shape for name, tensor in tensors.items() if not (name.endswith(NOT_LOADED) or name.startswith(NOT_LOADED))
    }
    if config.get("tie_word_embeddings") is not False:  # an output that is saved although it is tied is not loaded
        outputs = {name for name in shapes if any(part in name for part in OUTPUT)}
        embeddings = [shapes[name] for name in shapes.keys() - outputs if any(part in name for part in EMBEDDINGS)]
        shapes = {name: shape for name, shape in shapes.items() if name not in outputs or shape not in embeddings}
    precision = dtype or config.get("dtype") or config.get("torch_dtype")
    return size_by_shapes(shapes, BYTES.get(str(precision), min(BYTES.values())))


def _not_readable(configs: Configs, size: Size, file: str) -> Iterator[str]:
    """An error for weights that do not even fit where they are loaded, to be saved or to answer."""
    from plumbline.models.loading import device

    remedy = "set dtype to bfloat16, " if size.weight_bytes > min(BYTES.values()) else ""
    answering = [
        ".".join(filter(None, node))
        for node, config in configs.items()
        if node[0] in ("sample", "answer") and config.engine.server is None and config.engine.shards == "here"
    ]
    complaint = _too_heavy(size, "cpu", "pretrain loads", remedy)
    if answering and not complaint:
        complaint = _too_heavy(size, device(), f"{', '.join(answering)} load", remedy)
    if complaint:
        yield f"{file}: path: {complaint}"


def _not_trainable(configs: Configs, size: Size) -> Iterator[str]:
    """Errors for nodes that train, in one process, what does not fit with its optimiser, or could not be saved."""
    for node, config in configs.items():
        values = settings(node, config) if node[0] in ("sft", "reward_model", "align", "rl") else None
        if trains_weights(values) and config.launcher.is_local:
            method = getattr(values, "method", node[0]) if node[0] in ("align", "rl") else node[0]
            if complaint := memory_problem(values, method, size):
                yield f"{where(node)}: {complaint}"


def _judges_too_large(configs: Configs, params: Params) -> Iterator[str]:
    """Errors for judges whose weights do not fit where they answer."""
    for judge in judges_from_elsewhere(configs, params):
        here = local_files(judge.path, judge.revision)
        size = least_size(judge.path, judge.revision) if here else None
        if size and (complaint := _too_heavy(size, judge.device.partition(":")[0], "the judge loads")):
            yield f"{judge.file}: {judge.member}model: {complaint}"


def _too_heavy(size: Size, device: str, who: str, remedy: str = "") -> str:
    """A complaint about weights that are more than the memory of a device; empty if they fit, or if there is no such device.

    who: what loads them, with its verb. remedy: what to change besides, with a comma behind.
    """
    import torch

    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        return ""
    there, needed = total_memory(device), size.parameters * size.weight_bytes
    if needed <= there:
        return ""
    memory = f"the memory of this {'GPU' if device == 'cuda' else 'machine'}"
    return (
        f"expected weights of at most {gib(there)} GiB, {memory}, into which {who} them, found at least {gib(needed)} GiB for "
        f"{size.parameters:,} parameters. To load them, {remedy}take a smaller model, or a machine with more memory"
    )
