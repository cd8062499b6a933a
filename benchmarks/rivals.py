"""What else can run a model: torch.compile, and other runtimes where the extra ``peers`` is installed.

Each takes a module and its input, and gives a function that runs it on the threads torch runs on.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from benchmarks.common import Run


def can_compile() -> bool:
    """Whether torch.compile has the C++ compiler it needs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def compiled(module: nn.Module, x: Tensor) -> Run:
    """torch.compile with frozen weights; LSTMs are compiled too, not left to eager."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    # A graph module has a forward of its own. Models that share one, as all nn.Sequential do, share a
    # cache as well: after eight of them torch.compile silently gives up and runs eager.
    graph = module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)
    forward = torch.compile(graph.forward, dynamic=False)
    with (
        inductor.patch(freezing=True, compile_threads=1),
        dynamo.patch(allow_rnn=True),
        torch.inference_mode(),
    ):
        forward(x)
    return lambda: forward(x)


def _onnx(module: nn.Module, x: Tensor) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(module, (x,), file, dynamo=True, input_names=["x"], verbose=False)
    return file.getvalue()


def onnxruntime(module: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    # Its threads would spin into the turn of the next contestant.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(_onnx(module, x), options, providers=["CPUExecutionProvider"])
    inputs = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def openvino(module: nn.Module, x: Tensor) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the CPU has it
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(_onnx(module, x)), "CPU", settings).create_infer_request()
    inputs = [x.numpy()]
    return lambda: torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])


def torch_pruning(module: nn.Module, x: Tensor, share: float) -> nn.Module:
    """The dense ``module`` shrunk to about this share of its units, those of the smallest weights gone."""
    import torch_pruning

    small = copy.deepcopy(module).requires_grad_(True)
    last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    with torch.inference_mode(False), torch.enable_grad():  # it follows the graph of gradients
        torch_pruning.pruner.MagnitudePruner(
            small, x, torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - share, ignored_layers=[last],
        ).step()  # fmt: skip
    weights = [sum(p.numel() for p in m.parameters()) for m in (module, small)]
    assert weights[1] <= 1.05 * share * weights[0], f"torch-pruning left {weights} weights"
    return small.requires_grad_(False)


PEERS: dict[str, Callable[[nn.Module, Tensor], Run]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def peers(module: nn.Module, x: Tensor) -> dict[str, Run]:
    """``module`` on the runtimes that are installed; what one cannot run is left out, with a warning."""
    runs = {}
    for name, run in PEERS.items():
        if installed("onnx", "onnxscript", name):
            try:
                runs[name] = run(module, x)
                runs[name]()
            except Exception as error:  # exporters and runtimes have many
                warnings.warn(f"{name} left out: {type(error).__name__}: {error}", stacklevel=2)
                runs.pop(name, None)
    return runs
