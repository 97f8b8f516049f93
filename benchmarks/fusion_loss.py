"""What fusion costs beside plain training, and what head and loss in chunks cost beside whole logits.

    python benchmarks/fusion_loss.py [--rounds 5] [--tokens 512] [--vocab 262144] [--positions 2048] [--threads 0]

- Steps (forward, loss, backward, clip, AdamW) of the bundled model on one row, with the text's own tokens alone (CLM),
  with CLM and sparse targets of ten tokens a position, and with CLM and chunks. Rounds alternate between the losses;
  medians are compared. Peak memory is that of a process which trains one of them alone. With `--threads 1` seconds are
  those of the processor, which others on the same machine disturb less.
- The loss by itself, in float32, on a large vocabulary: its peak memory beyond weights and gradients, as a share of
  full float32 logits.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.io.hardware import hardware_text
from transfuse.io.models import load_model
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import TrainingRow, packed_passes
from transfuse.train.chunked_head import OutputHead, chunked_loss, find_head
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.settings import LoraSettings
from transfuse.train.soft_targets import ChunkTargets, SoftTargets
from transfuse.train.target_losses import Targets, targets_loss

KEPT = 10
LOSSES = ("clm", "cross-entropy", "forward-kl", "reverse-kl", "uld", "alm")
HEADS = ("whole", "chunked")
MIB = 2**20


def peak_mib() -> float:
    """Most memory that this process has held since `forget_peak`."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in each]
    return int(line.split()[1]) / 1024


def clock() -> float:
    """Seconds gone by, of the processor where there is one thread."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def forget_peak() -> None:
    """Count peak memory from here."""
    Path("/proc/self/clear_refs").write_text("5")


def row_of(loss: str, token_ids: list[int], n_vocab: int) -> TrainingRow:
    """A text with drawn targets: their cost does not depend on what they say."""
    row, generator = TrainingRow(token_ids, 1), torch.Generator().manual_seed(0)
    if loss == "clm":
        return row
    if loss == "alm":
        starts = torch.arange(0, row.n_learned - 2, 2)
        return row._replace(soft=ChunkTargets(starts, starts + 2, torch.full((len(starts),), -4.0), 1.0, 0.9))
    log_probs = (
        torch.randn(row.n_learned, n_vocab, generator=generator).mul_(3).log_softmax(1).topk(KEPT, dim=1)
    )
    return row._replace(
        soft=SoftTargets(log_probs.indices.int(), log_probs.values, hard_weight=0.9, divergence=loss)  # type: ignore[arg-type]
    )


def steps_of(method: str, head: str, losses: tuple[str, ...], n_tokens: int) -> dict[str, Callable[[], None]]:
    """One training step for each loss, on one model."""
    loaded = load_model("smollm2-135m", trainable=method == "full")
    text = "\n".join(load_texts(None))
    token_ids = loaded.tokenizer(text)["input_ids"][:n_tokens]
    assert len(token_ids) == n_tokens
    torch.manual_seed(0)
    model: nn.Module = loaded.model if method == "full" else attach_lora(loaded.model, LoraSettings())
    found = find_head(model)
    assert isinstance(found, OutputHead)
    objective = AnswerLoss(model, torch.bfloat16).train()
    if head == "chunked":
        objective.use_chunks(found)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5)

    def step_of(loss: str) -> Callable[[], None]:
        (batch,) = packed_passes([row_of(loss, token_ids, found.n_vocab)], n_tokens)
        given = move_pass(batch, loaded.device)

        def step() -> None:
            (objective(**given) / n_tokens).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return {loss: step_of(loss) for loss in losses}


def time_steps(method: str, head: str, n_rounds: int, n_tokens: int) -> dict[str, float]:
    """Median seconds of a step, by loss, in one process."""
    steps = steps_of(method, head, LOSSES, n_tokens)
    seconds: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    for n_round in range(n_rounds + 1):
        for loss, step in steps.items():
            started = clock()
            step()
            if n_round:  # the first round warms up
                seconds[loss].append(clock() - started)
    return {loss: statistics.median(found) for loss, found in seconds.items()}


def peak_of_steps(method: str, head: str, loss: str, n_tokens: int) -> float:
    """Peak MiB of training with one loss; loading is not counted."""
    (step,) = steps_of(method, head, (loss,), n_tokens).values()
    forget_peak()
    for _ in range(3):
        step()
    return peak_mib()


def loss_alone(loss: str, head: str, is_trained: bool, n_vocab: int, n_positions: int) -> dict[str, float]:
    """Peak MiB beyond weights and gradients, and seconds, of head and loss with their backward pass."""
    torch.manual_seed(0)
    linear = nn.Linear(640, n_vocab, bias=False)
    linear.weight.requires_grad_(is_trained)
    hidden = torch.randn(n_positions, 640, requires_grad=True)
    row = row_of("clm" if loss == "clm" else loss, torch.randint(n_vocab, (129,)).tolist(), n_vocab)
    soft = None
    if isinstance(row.soft, SoftTargets):
        (batch,) = packed_passes([row], 1 << 30)
        assert batch.soft is not None
        again = (n_positions + 127) // 128
        soft = batch.soft._replace(
            **{
                name: torch.cat([getattr(batch.soft, name)] * again)[:n_positions]
                for name in ("token_ids", "log_probs", "temperatures", "weights")
            }
        )
    targets = Targets(torch.randint(n_vocab, (n_positions,)), torch.full((n_positions,), 0.9), soft)
    output = OutputHead(nn.Identity(), linear, 1.0, None)
    gradients = 4 * (hidden.numel() + (linear.weight.numel() if is_trained else 0)) / MIB
    forget_peak()
    before, started = peak_mib(), clock()
    if head == "chunked":
        total = chunked_loss(
            hidden,
            output,
            lambda logits, start, end: targets_loss(logits, targets.between(start, end)),
            dtype=torch.float32,
        )
    else:
        total = targets_loss(linear(hidden), targets)
    (total / n_positions).backward()
    return {"mib": peak_mib() - before - gradients, "seconds": clock() - started}


def apart(*arguments: str) -> dict[str, float]:
    """What this script measures in a process of its own."""
    command = [sys.executable, __file__, "--only", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def only(kind: str, *rest: str) -> dict[str, float]:
    """One measurement, in this process."""
    if kind == "time":
        return time_steps(rest[0], rest[1], int(rest[2]), int(rest[3]))
    if kind == "peak":
        return {"mib": peak_of_steps(rest[0], rest[1], rest[2], int(rest[3]))}
    return loss_alone(rest[0], rest[1], rest[2] == "trained", int(rest[3]), int(rest[4]))


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--tokens", default="512")
    parser.add_argument("--vocab", default="262144")
    parser.add_argument("--positions", default="2048")
    parser.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.only:
        print(json.dumps(only(*arguments.only)))
        return
    print(f"{hardware_text()}; {arguments.tokens} tokens, bfloat16 autocast, medians of {arguments.rounds}\n")
    print("| training | head | loss | s a step | x CLM | peak MiB | x CLM |\n|---|---|---|---|---|---|---|")
    for method in ("full", "lora"):
        for head in HEADS:
            seconds = apart("time", method, head, arguments.rounds, arguments.tokens)
            peaks = {loss: apart("peak", method, head, loss, arguments.tokens)["mib"] for loss in LOSSES}
            for loss in LOSSES:
                print(
                    f"| {method} | {head} | {loss} | {seconds[loss]:.3f} | {seconds[loss] / seconds['clm']:.3f} "
                    f"| {peaks[loss]:.0f} | {peaks[loss] / peaks['clm']:.3f} |",
                    flush=True,
                )
    full = 4 * int(arguments.vocab) * int(arguments.positions) / MIB
    print(
        f"\nHidden size 640, vocabulary {arguments.vocab}, {arguments.positions} positions, float32: "
        f"logits of {full:.0f} MiB\n\n| head | its weights | loss | peak MiB | of full logits | s |\n"
        "|---|---|---|---|---|---|"
    )
    for head in ("chunked", "whole"):
        for weights in ("frozen", "trained"):
            for loss in ("clm", "cross-entropy", "forward-kl", "uld"):
                if head == "whole" and (loss, weights) != ("forward-kl", "frozen"):
                    continue
                found = apart("loss", loss, head, weights, arguments.vocab, arguments.positions)
                print(
                    f"| {head} | {weights} | {loss} | {found['mib']:.0f} | {found['mib'] / full:.3f} "
                    f"| {found['seconds']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
