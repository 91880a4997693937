"""The scorer beside other ways to run the same network on the same images, each at its best batch.

    python -m tests.benchmarks.bench_scorer [--images 3072] [--rounds 3] [--real DIR] [--simulated FOLDER]

Contenders: torch eager and torch.compile in fp32 and bf16, ONNX Runtime, OpenVINO in fp32 and bf16; what is not
installed is said. Every one returns the logit alone; the scorer as it is used also returns an uncertainty and a
distance, so its rate is told with and without them. Each contender is checked against the fp32 reference by the guard
of DESIGN section 5; one that fails it is told as failing, and where it is one of our own engines the script ends. DIR
holds npz files of real cut-outs, FOLDER shards of labelled ones (`deepshadows simulate --cutouts 2000 --output FOLDER`)
of which up to 4,000 are taken; without FOLDER eight small tiles are simulated, too few to tell a flip in 2,000, and
nothing ends the script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepshadows.model import checkpoint, engines, uncertainty
from deepshadows.model.card import Card
from deepshadows.model.engines import Engine, EngineUnavailableError
from deepshadows.model.fused import fused_cpu
from deepshadows.model.network import DeepShadowsNet, to_input
from deepshadows.model.scorer import has_tiles, load_scorer
from deepshadows.settings import DEFAULT_NETWORK
from deepshadows.sky.cutouts import Geometry
from deepshadows.sky.shards import Cutouts, list_shards, read_cutouts, read_npz
from deepshadows.sky.stretch import stretch_named
from deepshadows.verbs.simulate_cutouts import labelled_cutouts
from tests.benchmarks.bench_classify import machine
from tests.benchmarks.guard import Agreement, agreement
from tests.benchmarks.results import write_figures, write_section

Images = NDArray[np.uint8]
Run = Callable[[Images], NDArray[np.float32]]
"""Logits (N,) of one batch (N, 64, 64, 3)."""
Labels = NDArray[np.int8]
USED = ", with error and distance"
IN_C, FOLDED = "our C", "oneDNN, batch norms folded in"
OURS = (IN_C, IN_C + USED, FOLDED, FOLDED + USED)
MOST_SIMULATED, FEWEST_GUARDED = 4_000, 2_000
BATCHES = (64, 256)


def torch_ways(net: DeepShadowsNet, batch: int) -> Iterator[tuple[str, Run]]:
    net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def eager(forward: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> Run:
        def run(images: Images) -> NDArray[np.float32]:
            with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                return forward(torch.from_numpy(images)).float().numpy()

        return run

    def whole(images: torch.Tensor) -> torch.Tensor:
        return net(to_input(images))

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield f"torch eager {name}", eager(whole, dtype)
        compiled = torch.compile(whole, dynamic=False, options={"freezing": True})
        yield f"torch.compile {name}", eager(compiled, dtype)


def onnx_ways(net: DeepShadowsNet, batch: int) -> Iterator[tuple[str, Run]]:
    import onnxruntime  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        example = to_input(torch.zeros((batch, 64, 64, 3), dtype=torch.uint8)).contiguous()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (example,), path, input_names=["x"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count() or 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> NDArray[np.float32]:
        x = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255
        return np.asarray(session.run(None, {"x": x})[0])

    yield "ONNX Runtime fp32", run


def openvino_ways(net: DeepShadowsNet, batch: int) -> Iterator[tuple[str, Run]]:
    import openvino  # type: ignore[import-not-found]

    class FromBytes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.requires_grad_(False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.net(images.permute(0, 3, 1, 2).float() / 255))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = (batch, 64, 64, 3)
        model = openvino.convert_model(FromBytes().eval(), example_input=torch.zeros(shape, dtype=torch.uint8))
        model.reshape(shape)
    for name in ("f32", "bf16"):
        settings = {"INFERENCE_PRECISION_HINT": name, "PERFORMANCE_HINT": "THROUGHPUT"}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        yield f"OpenVINO {name.replace('f32', 'fp32')}", _queued(openvino, compiled)


def _queued(openvino: object, compiled: object) -> Run:
    """Batches in as many requests at a time as the compiled model asks for."""
    shape = tuple(compiled.input(0).shape)  # type: ignore[attr-defined]

    def run(images: Images) -> NDArray[np.float32]:
        logits = np.empty(len(images), np.float32)
        queue = openvino.AsyncInferQueue(compiled)  # type: ignore[attr-defined]

        def keep(request: object, start: int) -> None:
            logits[start : start + shape[0]] = request.get_output_tensor(0).data.ravel()  # type: ignore[attr-defined]

        queue.set_callback(keep)
        for start in range(0, len(images), shape[0]):
            queue.start_async({0: images[start : start + shape[0]]}, start)
        queue.wait_all()
        return logits

    run.takes_many = True  # type: ignore[attr-defined]
    return run


def our_ways(fitted: uncertainty.Uncertainty | None, net: DeepShadowsNet, batch: int) -> Iterator[tuple[str, Run]]:
    sizes = {"batch_size": batch, "threads": os.cpu_count() or 1}

    def logits_of(engine: Engine) -> Run:
        def run(images: Images) -> NDArray[np.float32]:
            return engine.measure(images).logits

        run.takes_many = True  # type: ignore[attr-defined]
        return run

    try:
        yield IN_C, logits_of(fused_cpu(net, **sizes))
        yield IN_C + USED, logits_of(fused_cpu(net, fitted, **sizes))
    except EngineUnavailableError as error:
        print(f"left out: {error}")
    yield FOLDED, logits_of(engines.folded_cpu(net, torch.bfloat16, **sizes))
    yield FOLDED + USED, logits_of(engines.folded_cpu(net, torch.bfloat16, fitted, **sizes))


def over(run: Run, images: Images, batch: int) -> NDArray[np.float32]:
    if getattr(run, "takes_many", False):
        return run(images)
    return np.concatenate([run(images[start : start + batch]) for start in range(0, len(images), batch)])


def measured(run: Run, images: Images, batch: int) -> tuple[float, float]:
    """Images/s, and microseconds of CPU an image: that of a machine with other work, too."""
    started, cpu_s = time.perf_counter(), time.process_time()
    over(run, images, batch)
    return len(images) / (time.perf_counter() - started), 1e6 * (time.process_time() - cpu_s) / len(images)


def sample(card: Card, real: Path | None, simulated: str | None) -> tuple[Images, Labels]:
    """Simulated cut-outs and the real ones, each once; their labels, -1 where there is none."""
    geometry = Geometry(fov_arcsec=card.fov_arcsec, bands=card.bands, stretch=stretch_named(card.stretch))
    if simulated is None:
        parts = [labelled_cutouts("des", number, 99, 1024, geometry).cutouts for number in range(8)]
    else:
        parts = list(of_shards(simulated, geometry))
    if real is not None:
        parts += [read_npz(str(path), geometry) for path in sorted(real.glob("*.npz"))]
    labels = [np.full(len(part), -1, np.int8) if part.label is None else part.label for part in parts]
    return np.concatenate([part.images for part in parts]), np.concatenate(labels)


def of_shards(folder: str, geometry: Geometry) -> Iterator[Cutouts]:
    """The first cut-outs of a folder, at most `MOST_SIMULATED`; each shard holds both classes."""
    wanted = MOST_SIMULATED
    for shard in list_shards(folder):
        if wanted:
            part = read_cutouts(shard.url, geometry)
            part = part.take(np.arange(min(wanted, len(part))))
            wanted -= len(part)
            yield part


def repeated(images: Images, rows: int) -> Images:
    return np.ascontiguousarray(np.tile(images, (-(-rows // len(images)), 1, 1, 1))[:rows])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real", type=Path, help="folder of npz files")
    parser.add_argument("--simulated", help="folder of shards of labelled cut-outs")
    parser.add_argument("--checkpoint", default=DEFAULT_NETWORK)
    wanted = parser.parse_args()
    print(machine())
    net, card = checkpoint.load(wanted.checkpoint)
    distinct, labels = sample(card, wanted.real, wanted.simulated)
    images = repeated(distinct, wanted.images)
    reference = engines.exact_cpu(net, threads=os.cpu_count() or 1).measure(distinct).logits
    runs: dict[str, dict[int, Run]] = {}
    agrees: dict[str, Agreement] = {}
    ways = (partial(our_ways, uncertainty.read(wanted.checkpoint, card)), torch_ways, onnx_ways, openvino_ways)
    for batch in BATCHES:
        for make in ways:
            try:
                for name, run in make(checkpoint.load(wanted.checkpoint)[0], batch):
                    logits = over(run, repeated(distinct, -(-len(distinct) // batch) * batch), batch)  # also compiles
                    agrees[name] = agreement(card, logits[: len(distinct)], reference, labels)
                    print(f"{name}, {batch}: {agrees[name]}", flush=True)
                    if name in OURS and len(distinct) >= FEWEST_GUARDED:
                        assert agrees[name].good, f"{name} is not as the reference: {agrees[name]}"
                    runs.setdefault(name, {})[batch] = run
            except ImportError as error:
                print(f"left out: {error}")
    rounds: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(wanted.rounds):
        for name, by_batch in runs.items():
            if turn == 1:  # the first round chooses the batch
                best = max(by_batch, key=lambda batch: rounds[name, batch][0][0])
                by_batch = runs[name] = {best: by_batch[best]}
            for batch, run in by_batch.items():
                rounds.setdefault((name, batch), []).append(measured(run, images, batch))
    report(
        runs,
        rounds,
        agrees,
        f"{len(images)} cut-outs, median of {wanted.rounds} rounds",
    )


def report(
    runs: dict[str, dict[int, Run]],
    rounds: dict[tuple[str, int], list[tuple[float, float]]],
    agrees: dict[str, Agreement],
    what: str,
) -> None:
    engine = load_scorer(DEFAULT_NETWORK, precision="fast").engine

    def median(name: str, batch: int, column: int) -> float:
        return statistics.median(values[column] for values in rounds[name, batch])

    lines = [
        f"`python -m tests.benchmarks.bench_scorer`, {machine()}; {what}, each at its best batch. As the "
        f"reference: the guard of DESIGN section 5, on {agrees[FOLDED].images} distinct ones, simulated and real"
        f"{'' if agrees[FOLDED].images >= FEWEST_GUARDED else ', too few to assert it for our own engines'}. "
        f"Runnable processes on this machine meanwhile: {os.getloadavg()[1]:.0f}. `--precision fast` takes here: "
        f"{engine}.",
        "",
        "| | images/s | CPU-µs per image | batch | as the reference |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"machine": machine(), "cores": os.cpu_count() or 1}
    for name, by_batch in runs.items():
        best = max(by_batch, key=lambda batch: median(name, batch, 0))
        rate, cpu_us = median(name, best, 0), median(name, best, 1)
        lines.append(f"| {name} | {rate:.0f} | {cpu_us:.0f} | {best} | {agrees[name]} |")
        figures |= {f"{name} images_per_s": round(rate), f"{name} cpu_us_per_image": round(cpu_us, 1)}
        figures |= {f"{name} guard": asdict(agrees[name])}
        if name == (FOLDED if has_tiles() else IN_C) + USED:
            figures["fast_images_per_s"] = round(1e6 * (os.cpu_count() or 1) / cpu_us)  # of cores with nothing else
    print("\n".join(lines))
    write_section("Scorer beside other engines" + (", on a CPU with AMX" if has_tiles() else ""), lines)
    write_figures("scorer_amx" if has_tiles() else "scorer", figures)


if __name__ == "__main__":
    main()
