"""Time, memory and error of every way to per-example gradient norms. `10_gradnorm.ipynb` calls this and explains it.

Prints one JSON object a line, and on stderr what is happening. A process of its own for every call: peak memory
can only be told for a whole process, and the number of threads is best set before anything has run.
"""
import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import types
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torchvision.models.resnet import BasicBlock

from datadiet.core import provenance, seeded
from datadiet.gradnorm import GradNorms, grad_norms
from datadiet.layer_norms import Window, conv_candidates, conv_method, conv_squares
from datadiet.models import make_model

# ---------------------------------------------------------------- what is measured on


@dataclass(frozen=True)
class Network:
    "A network of `datadiet.models`, the shape of its images and how many come at once."
    label: str
    model: dict
    shape: tuple[int, int, int]
    batch: int


_RESNET18 = dict(name="resnet18", width=64)
NETWORKS = {
    "resnet18-64": Network("ResNet18, width 64, batch 32", _RESNET18, (3, 32, 32), 32),
    "resnet18-16": Network("ResNet18, width 16, batch 128", dict(name="resnet18", width=16), (3, 32, 32), 128),
    "small_cnn": Network("small_cnn, digits, batch 256", dict(name="small_cnn", channels=1), (1, 8, 8), 256),
    "resnet18-64-b4": Network("ResNet18, width 64, batch 4", _RESNET18, (3, 32, 32), 4),
    "resnet18-64-b16": Network("ResNet18, width 64, batch 16", _RESNET18, (3, 32, 32), 16),
    "resnet18-64-b512": Network("ResNet18, width 64, batch 512", _RESNET18, (3, 32, 32), 512),
    "tiny": Network("ResNet10, width 4, batch 5", dict(name="resnet10", width=4), (3, 8, 8), 5),
}


@torch.no_grad()
def unsettle(model: nn.Module, images: Tensor) -> nn.Module:
    "Give every BatchNorm a γ, a β and running statistics that are not those of a fresh network; returns it in eval mode."
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        nn.init.uniform_(m.weight, 0.5, 1.5)
        nn.init.normal_(m.bias, std=0.1)
        m.momentum = None                       # the plain average over the batches that follow
    model.train()
    for part in images.split(64): model(part)
    return model.eval()


def make_case(network: str, device="cpu", dtype=torch.float32, smooth=False) -> tuple[nn.Module, Tensor, Tensor]:
    "The network in eval mode (`smooth`: SiLU for ReLU), its images and labels: the same in every process."
    net = NETWORKS[network]
    with seeded(0, f"benchmark/{network}"):
        images, labels = torch.randn(net.batch, *net.shape), torch.randint(10, (net.batch,))
        model = unsettle(make_model(**{"channels": 3} | net.model), torch.randn(64, *net.shape))
    if smooth: replace(model, nn.ReLU, lambda relu: nn.SiLU())
    return model.to(device, dtype), images.to(device, dtype), labels.to(device)


def replace(model: nn.Module, kind: type, new: Callable) -> None:
    "Put `new(module)` in the place of every module of this kind."
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind): setattr(parent, name, new(child))


# ---------------------------------------------------------------- the ways

@dataclass(frozen=True)
class Method:
    "One way: `prepare(model, images, labels)` gives a function without arguments that does the work once."
    label: str
    prepare: Callable
    group: str                                   # "step": no norms, "torch", "peer" or "ours"
    needs: str | None = None                     # the package that must be installed


METHODS: dict[str, Method] = {}


def method(name: str, label: str, group: str, needs: str | None = None):
    "Enter a function as one of the METHODS."
    def enter(prepare):
        METHODS[name] = Method(label, prepare, group, needs)
        return prepare
    return enter


def _nhwc(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    return model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)


@method("ordinary", "ordinary step, NCHW", "step")
def ordinary(model, images, labels):
    "Forward, mean loss, backward with weight gradients: what a training step costs, without the optimizer."
    def step():
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
    return step


@method("ordinary-nhwc", "ordinary step, channels_last", "step")
def ordinary_nhwc(model, images, labels): return ordinary(*_nhwc(model, images), labels)


@method("floor", "activations only, NCHW", "step")
def floor(model, images, labels):
    "Forward and backward without any weight gradient: below this nobody can get who needs every layer's gradient."
    model.requires_grad_(False)
    first = next(m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    first.register_forward_hook(lambda module, args, out: out.requires_grad_())
    return lambda: F.cross_entropy(model(images), labels).backward()


@method("floor-nhwc", "activations only, channels_last", "step")
def floor_nhwc(model, images, labels): return floor(*_nhwc(model, images), labels)


def total(gradients) -> Tensor:
    "The norm over all tensors together, from one example's gradients."
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def totals(gradients) -> Tensor:
    "B norms, from gradients that have the batch in front."
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()


@method("loop", "loop over examples", "torch")
def loop(model, images, labels):
    "One example at a time: the definition."
    weights = list(model.parameters())
    def one(i): return total(torch.autograd.grad(F.cross_entropy(model(images[i:i + 1]), labels[i:i + 1]), weights))
    return lambda: torch.stack([one(i) for i in range(len(images))])


def by_vmap(model, images, labels, chunk):
    "torch.func: the gradient of one example's loss, vectorised, and its norm taken inside so that no gradient is kept."
    weights = {name: p.detach() for name, p in model.named_parameters()}
    def one_loss(weights, image, label): return F.cross_entropy(functional_call(model, weights, image[None]), label[None])
    def one_norm(weights, image, label): return total(grad(one_loss)(weights, image, label).values())
    every = vmap(one_norm, (None, 0, 0), chunk_size=chunk)
    return lambda: every(weights, images, labels)


@method("vmap", "torch.func vmap(grad), whole batch", "torch")
def vmap_whole(model, images, labels): return by_vmap(model, images, labels, None)


@method("vmap-8", "torch.func vmap(grad), chunks of 8", "torch")
def vmap_8(model, images, labels): return by_vmap(model, images, labels, 8)


@method("vmap-32", "torch.func vmap(grad), chunks of 32", "torch")
def vmap_32(model, images, labels): return by_vmap(model, images, labels, 32)


@method("jacrev", "torch.func jacrev of the loss vector", "torch")
def jacobian(model, images, labels):
    "The authors' way, translated from JAX: the Jacobian of all losses, so that every example's row crosses the whole batch."
    weights = {name: p.detach() for name, p in model.named_parameters()}
    def losses(weights): return F.cross_entropy(functional_call(model, weights, (images,)), labels, reduction="none")
    return lambda: totals(jacrev(losses)(weights).values())


# ---------------------------------------------------------------- the peers' libraries

class FrozenBatchNorm(nn.Module):
    "A BatchNorm in eval mode that Opacus accepts: the same arithmetic, the same two parameters, and no buffers."

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.mean, self.var = norm.running_mean, norm.running_var

    def forward(self, x): return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


def frozen_grad_sample(layer, activations, backprops):
    "Opacus' rule for `FrozenBatchNorm`: every example's gradients of γ and β."
    normed = F.batch_norm(activations[0], layer.mean, layer.var, None, None, False, 0.0, layer.eps)
    return {layer.weight: (backprops * normed).sum((2, 3)), layer.bias: backprops.sum((2, 3))}


def _block_forward(self, x):
    "torchvision's BasicBlock without its `out += identity`."
    out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def out_of_place(model: nn.Module) -> nn.Module:
    "The same network without in-place operations, which module hooks of Opacus and BackPACK do not survive."
    for m in model.modules():
        if isinstance(m, nn.ReLU): m.inplace = False
        if isinstance(m, BasicBlock): m.forward = types.MethodType(_block_forward, m)
    return model


def for_opacus(model: nn.Module) -> nn.Module:
    "The same function in the form that Opacus takes: frozen BatchNorms, nothing in place, and in training mode, else it looks away."
    from opacus.grad_sample import register_grad_sampler
    register_grad_sampler(FrozenBatchNorm)(frozen_grad_sample)
    replace(model, nn.BatchNorm2d, FrozenBatchNorm)
    return out_of_place(model).train()


def by_opacus(model, images, labels, functorch=False, chunk=None):
    "Opacus keeps every example's gradients beside the parameters; `chunk` examples at a time (None: all of them)."
    from opacus import GradSampleModule
    wrapped = GradSampleModule(for_opacus(model), loss_reduction="sum", force_functorch=functorch)
    def some(images, labels):
        F.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        norms = totals([p.grad_sample for p in wrapped.parameters()])
        wrapped.zero_grad(set_to_none=True)      # forgets .grad_sample, too
        return norms
    parts = list(zip(images.split(chunk or len(images)), labels.split(chunk or len(labels))))
    return lambda: torch.cat([some(*part) for part in parts])


@method("opacus", "Opacus, hooks", "peer", "opacus")
def opacus_hooks(model, images, labels): return by_opacus(model, images, labels)


@method("opacus-8", "Opacus, hooks, chunks of 8", "peer", "opacus")
def opacus_chunks(model, images, labels): return by_opacus(model, images, labels, chunk=8)


@method("opacus-functorch", "Opacus, functorch", "peer", "opacus")
def opacus_functorch(model, images, labels): return by_opacus(model, images, labels, functorch=True)


@method("opacus-ghost", "Opacus, ghost clipping", "peer", "opacus")
def opacus_ghost(model, images, labels):
    "The first of ghost clipping's two backward passes: norms without per-example gradients, where Opacus has a rule for it."
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    wrapped = GradSampleModuleFastGradientClipping(for_opacus(model), loss_reduction="sum", use_ghost_clipping=True)
    def step():
        F.cross_entropy(wrapped(images), labels, reduction="sum").backward()
        norms = wrapped.get_norm_sample()
        wrapped.zero_grad(set_to_none=True)
        return norms
    return step


@method("backpack", "BackPACK, NCHW", "peer", "backpack")
def backpack_l2(model, images, labels):
    "BackPACK squares and sums in its hooks; the loss must be a sum, else every norm comes divided by the batch size."
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad
    model, loss = extend(out_of_place(model)), extend(nn.CrossEntropyLoss(reduction="sum"))
    def step():
        with backpack(BatchL2Grad()): loss(model(images), labels).backward()
        norms = torch.stack([p.batch_l2 for p in model.parameters()]).sum(0).sqrt()
        for p in model.parameters(): del p.batch_l2
        model.zero_grad(set_to_none=True)
        return norms
    return step


@method("backpack-nhwc", "BackPACK, channels_last", "peer", "backpack")
def backpack_nhwc(model, images, labels): return backpack_l2(*_nhwc(model, images), labels)


# ---------------------------------------------------------------- ours

@method("call", "datadiet, one call", "ours")
def one_call(model, images, labels):
    "grad_norms as a reader types it: what it knows about the model it knows from the first call."
    return lambda: grad_norms(model, images, labels)


def by_engine(model, images, labels, method):
    "GradNorms, made once for many batches: how a data set is scored."
    norms = GradNorms(model, method=method)
    return lambda: norms(images, labels)


@method("auto", "datadiet, auto", "ours")
def engine_auto(model, images, labels): return by_engine(model, images, labels, "auto")


@method("tune", "datadiet, tune", "ours")
def engine_tune(model, images, labels): return by_engine(model, images, labels, "tune")


@method("bf16", "datadiet, auto, bfloat16", "ours")
def engine_bf16(model, images, labels):
    "The same with products in bfloat16, which has 8 bits for the digits: for GPUs and CPUs that compute it faster."
    norms = by_engine(model, images, labels, "auto")
    def step():
        with torch.autocast(images.device.type, torch.bfloat16): return norms()
    return step


@method("fallback", "datadiet, vmap", "ours")
def engine_vmap(model, images, labels): return by_engine(model, images, labels, "vmap")


# ---------------------------------------------------------------- measuring

def say(text: str) -> None: print(text, file=sys.stderr, flush=True)


def missing(name: str) -> str | None:
    "Why a method cannot be measured here, or None."
    needs = METHODS[name].needs
    if needs and importlib.util.find_spec(needs) is None:
        return f"{METHODS[name].label}: {needs} is not installed, pip install 'datadiet[bench]'"


def norms_of(name: str, network: str, **case) -> Tensor | None:
    "The norms that a method gives; None for one that gives none."
    norms = METHODS[name].prepare(*make_case(network, **case))()
    return None if norms is None else norms.detach()


ERRORS = dict(error="largest error", error_median="median error", error_smooth="largest with SiLU")


def relative_errors(norms: Tensor, exact: Tensor) -> Tensor:
    return (norms.double() - exact).abs() / exact


def measure_error(network: str, methods: Iterable[str], device="cpu") -> list[dict]:
    """Relative errors of each method (None for a step, which gives no norms) against autograd in double precision, one example at a time.

    `error` is the largest over the batch, `error_median` the median; `error_smooth` is the largest with SiLU for ReLU.
    """
    rows = {name: dict(network=network, method=name, **dict.fromkeys(ERRORS)) for name in methods}
    for smooth in (False, True):
        exact = norms_of("loop", network, device=device, dtype=torch.float64, smooth=smooth)
        for name, row in rows.items():
            if METHODS[name].group == "step": continue
            found = relative_errors(norms_of(name, network, device=device, smooth=smooth), exact)
            row |= dict(error_smooth=found.max().item()) if smooth else dict(error=found.max().item(), error_median=found.median().item())
    return list(rows.values())


def seconds(step: Callable, device="cpu", times: int = 1) -> float:
    """How long one call of `step` takes, on average over `times` calls: CPU time of this process when it has one
    thread, wall time when it has more, and CUDA's own events on a GPU."""
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times): step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / times
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(times): step()
    return (clock() - start) / times


def spread(name: str, values: list[float]) -> dict[str, float]:
    "Median, 16th and 84th percentile."
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64)).tolist()
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def measure_speed(network: str, methods: Iterable[str], rounds: int = 7, device="cpu", least: float = 0.1) -> list[dict]:
    """Time per example and ratio to the ordinary step of each method: one dict each.

    In every round each method is timed directly after the ordinary step, and the ratio of these two counts:
    what slows the machine down for a while slows both. Short steps are repeated until they fill `least` seconds.
    """
    base = ordinary(*make_case(network, device))
    steps = {name: METHODS[name].prepare(*make_case(network, device)) for name in methods}
    for step in [base, *steps.values()]: step()                                 # warm-up
    times = max(1, round(least / seconds(base, device)))
    pairs = {name: [] for name in steps}
    for r in range(rounds):
        say(f"{network}: round {r + 1} of {rounds}")
        for name, step in steps.items(): pairs[name].append((seconds(base, device, times), seconds(step, device, times)))
    batch = NETWORKS[network].batch
    return [dict(network=network, method=name, batch=batch, rounds=rounds,
                 **spread("ms", [1000 * t / batch for _, t in pair]), **spread("ratio", [t / b for b, t in pair]))
            for name, pair in pairs.items()]


def peak_memory() -> float:
    """The largest memory that this process has had, in MB.

    Linux' VmHWM where there is one: `ru_maxrss` of a process starts at what its parent had.
    """
    status = Path("/proc/self/status")
    if status.exists(): return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource                              # which Windows lacks
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure_memory(network: str, name: str, device="cpu") -> dict:
    "Peak memory of two calls: on a CPU above what the imports took, on a GPU what torch had allocated there."
    if METHODS[name].needs: importlib.import_module(METHODS[name].needs)
    before = peak_memory()
    step = METHODS[name].prepare(*make_case(network, device))
    for _ in range(2): step()
    cuda = torch.device(device).type == "cuda"
    return dict(network=network, method=name, memory=torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_memory() - before)


# ---------------------------------------------------------------- single convolutions

KERNELS = [(3, 1), (3, 2), (1, 1), (1, 2)]                        # side, stride
CHANNELS = [3, 8, 16, 32, 64, 128, 256, 512]
SIDES = [4, 8, 16, 32]                                            # of the output


def make_layer(kernel: int, stride: int, channels: int, side: int, batch: int, device="cpu") -> tuple[Tensor, Tensor, Window, int]:
    "Input, output's gradient, window and padding of a convolution as ResNets have them: twice the channels where it strides."
    padding, outputs = kernel // 2, 64 if channels == 3 else channels * stride
    with seeded(0, f"layer/{kernel}/{stride}/{channels}/{side}"):
        x, g = torch.randn(batch, channels, side * stride, side * stride), torch.randn(batch, outputs, side, side)
    x, g = (t.to(device).contiguous(memory_format=torch.channels_last) for t in (x, g))
    return x, g, Window((kernel,) * 2, (stride,) * 2, ((padding,) * 2,) * 2), padding


def layer_steps(kernel: int, stride: int, channels: int, side: int, batch: int, device="cpu") -> tuple[dict[str, Callable], str]:
    "Each way to the norms of one convolution's weight gradients (and `ordinary`, their sum over the batch), and the rule's choice."
    x, g, window, padding = make_layer(kernel, stride, channels, side, batch, device)
    weight = x.new_empty(g.shape[1], channels, kernel, kernel)
    steps = {name: lambda name=name: conv_squares(x, g, window, method=name) for name in conv_candidates(x, g, window)}
    nchw = [t.contiguous() for t in (g, x)]
    steps["ordinary"] = lambda: torch.ops.aten.convolution_backward(
        *nchw, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [False, True, False])[1]
    return steps, conv_method(x, g, window)


def measure_layer(kernel: int, stride: int, channels: int, side: int, rounds: int = 3, batch: int = 16, device="cpu", least: float = 0.01) -> list[dict]:
    "Microseconds per example of each way, the ways taking turns; `rule` marks the one that `method='auto'` takes."
    steps, chosen = layer_steps(kernel, stride, channels, side, batch, device)
    for step in steps.values(): step()
    times = {name: max(1, round(least / seconds(step, device))) for name, step in steps.items()}
    found = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items(): found[name].append(1e6 * seconds(step, device, times[name]) / batch)
    return [dict(kernel=kernel, stride=stride, channels=channels, side=side, method=name, rule=name == chosen, batch=batch, rounds=rounds,
                 **spread("us", values)) for name, values in found.items()]


def measure_layers(rounds: int, device="cpu", largest: float = 6e8) -> Iterable[dict]:
    "`measure_layer` over the grid, but for layers of more than `largest` multiplications an example, which no small-image network has."
    for kernel, stride in KERNELS:
        say(f"convolutions {kernel}×{kernel}, stride {stride}")
        for channels in CHANNELS:
            for side in SIDES:
                if (kernel * side * channels) ** 2 * stride <= largest: yield from measure_layer(kernel, stride, channels, side, rounds, device=device)


def use_one_core() -> None:
    "Stay on the first of the cores that this process may use, so that the scheduler does not move it (where it can be told)."
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def allow_tf32(allowed: bool) -> None:
    "Whether a GPU may round the factors of float32 products to 10 bits."
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"


def versions() -> dict[str, str]:
    "The other libraries' versions; empty where one is not installed."
    names = dict(opacus="opacus", backpack="backpack-for-pytorch")
    return {package: importlib.metadata.version(name) if importlib.util.find_spec(package) else "" for package, name in names.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "error", "all", "layers"), help="all: fit for one method, since memory is the process's")
    parser.add_argument("network", choices=NETWORKS, nargs="?", help="not for layers")
    parser.add_argument("methods", choices=[*METHODS, []], nargs="*", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round the factors of float32 products")
    args = parser.parse_args(arguments)
    if args.what != "layers" and not (args.network and args.methods): parser.error(f"{args.what} needs a network and methods")
    return args


def rows_of(args: argparse.Namespace) -> list[dict]:
    "What was asked for."
    network, methods, device = args.network, args.methods, args.device
    if args.what == "layers": return list(measure_layers(args.rounds, device))
    memory = [measure_memory(network, name, device) for name in methods] if args.what in ("memory", "all") else []
    speed = measure_speed(network, methods, args.rounds, device) if args.what in ("speed", "all") else []
    error = measure_error(network, methods, device) if args.what in ("error", "all") else []
    return [dict(ChainMap(*rows)) for rows in zip(*filter(None, (error, memory, speed)))]


def main(arguments: list[str] | None = None) -> list[dict]:
    "Measure what the command line asks for: rows, each with its provenance."
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    allow_tf32(args.tf32)
    marks = dict(tf32=args.tf32) | versions() | provenance(args.device)        # before the cores are restricted: it names them
    if arguments is None and args.threads == 1 and args.device == "cpu": use_one_core()
    return [row | marks for row in rows_of(args)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")              # Opacus and BackPACK warn about hooks that do what they should
    for row in main(): print(json.dumps(row))
