"""Whether the model that a recipe aligns fits the memory of this machine, at every node: by the headers of its weights, before any work.

All numbers are what is needed at least, so that nothing is refused that could run in memory: activations, caches and libraries come on top.
Swap space does not count, since training from it is too slow to be of use.
"""

from collections.abc import Iterator

from plumbline.consistency import Configs, settings, where
from plumbline.graph import Params
from plumbline.hub_models import judges_from_elsewhere
from plumbline.models.architecture import HubModel
from plumbline.models.memory import total_memory
from plumbline.models.model_files import CONFIG, loaded_tensors, local_files
from plumbline.models.training_memory import Size, gib, memory_problem, size_by_shapes, trains_weights

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of a weight, by its precision."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""What the headers of safetensors files call the precisions of weights that are not quantised."""


def memory_problems(configs: Configs, params: Params) -> list[str]:
    """Errors for nodes of a sound recipe that need more memory than there is: for those of `configs`, to which `prepare` always belongs.

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
    if not (tensors := loaded_tensors(path, revision)):
        return None
    return size_by_shapes({name: tensor.shape for name, tensor in tensors.items()}, _weight_bytes(path, revision, dtype))


def least_bytes(path: str, revision: str | None) -> int | None:
    """The bytes that the weights of a folder or a hub id take at least, once they are loaded as they are; None if their headers cannot be read.

    Weights that are quantised take what they take in the file.
    """
    if not (tensors := loaded_tensors(path, revision)):
        return None
    weight_bytes = _weight_bytes(path, revision)
    return sum(
        tensor.parameter_count * weight_bytes if tensor.dtype in FLOATS else tensor.data_offsets[1] - tensor.data_offsets[0]
        for tensor in tensors.values()
    )


def _weight_bytes(path: str, revision: str | None, dtype: str | None = None) -> int:
    """The bytes of a weight in a precision, or else in the model's own; the fewest if nothing says which that is."""
    files = local_files(path, revision)
    config = (files and files.json(CONFIG)) or {}
    precision = dtype or config.get("dtype") or config.get("torch_dtype")
    return BYTES.get(str(precision), min(BYTES.values()))


def _not_readable(configs: Configs, size: Size, file: str) -> Iterator[str]:
    """An error for weights that do not even fit where they are loaded, to be saved or to answer."""
    from plumbline.models.loading import device

    remedy = "set dtype to bfloat16, " if size.weight_bytes > min(BYTES.values()) else ""
    answering = [
        ".".join(filter(None, node))
        for node, config in configs.items()
        if node[0] in ("sample", "answer") and config.engine.server is None and config.engine.shards == "here"
    ]
    needed = size.parameters * size.weight_bytes
    complaint = _too_heavy(needed, "cpu", "pretrain loads", remedy) if ("pretrain", None) in configs else ""
    if answering and not complaint:
        complaint = _too_heavy(needed, device(), f"{', '.join(answering)} load", remedy)
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
        needed = least_bytes(judge.path, judge.revision) if here else None
        if needed and (complaint := _too_heavy(needed, judge.device.partition(":")[0], "the judge loads")):
            yield f"{judge.file}: {judge.member}model: {complaint}"


def _too_heavy(needed: int, device: str, who: str, remedy: str = "") -> str:
    """A complaint about weights that exceed the memory of a device; empty if they fit, or if this machine has no such device.

    needed: their bytes. who: what loads them, with its verb. remedy: what to change besides, with a comma behind.
    """
    import torch

    if device != "cpu" and not (device == "cuda" and torch.cuda.is_available()):
        return ""
    there = total_memory(device)
    if needed <= there:
        return ""
    memory = f"the memory of this {'GPU' if device == 'cuda' else 'machine'}"
    return (
        f"expected weights of at most {gib(there)} GiB, {memory}, into which {who} them, found at least {gib(needed)} GiB. "
        f"To load them, {remedy}take a smaller model, or a machine with more memory"
    )
