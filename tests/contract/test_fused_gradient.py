"""From a model's pass over cache, fusion and files to the gradient: with one tokenizer it is plain distillation."""

from pathlib import Path

import pytest
import torch

from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.settings import DistributionSettings
from transfuse.fuse.target_files import TargetRows, write_targets
from transfuse.fuse.targets import FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import map_vocabulary
from transfuse.io.models import load_model
from transfuse.io.token_spans import token_spans
from transfuse.train.batches import packed_passes
from transfuse.train.objective import AnswerLoss, move_pass

K = 10
TEXTS = [
    "Spain won the cup for the first time, 1:0.",
    "The final was played in Sydney, on 20 August.",
    "Which country won?",
]


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-4), (None, 0.02)])
def test_fusing_one_source_of_the_same_tokenizer_without_clm_is_distillation(
    make_model_folder, tmp_path: Path, bits: int | None, tolerance: float
):
    """KL(p, q) over the ten likeliest tokens and the rest, by dense logits of plain transformers."""
    teacher, student = (
        load_model(
            str(make_model_folder(name, chat_template=None, seed=seed, initializer_range=0.2)),
            precision="float32",
            device="cpu",
            trainable=True,
        )
        for seed, name in ((1, "teacher"), (2, "student"))
    )
    how = FusionSettings(clm_weight=0, divergence="forward-kl", map="exact")
    cache = write_distributions(
        teacher, TEXTS, tmp_path / "cache", DistributionSettings(k=K, value_bits=bits)
    )  # type: ignore[arg-type]
    mapped = map_vocabulary(teacher.tokenizer, student.tokenizer, "exact", folder=tmp_path)
    spans = token_spans(student.tokenizer, TEXTS)
    fused = [
        fuse_piece(each, [cache.text(n)], [FusionSource("teacher", mapped)], how)
        for n, each in enumerate(spans)
    ]
    write_targets(tmp_path / "targets", fused, how, n_vocab=300, n_kept=K, is_exact=bits == 32)
    objective = AnswerLoss(student.model, torch.float32)
    ours = 0.0
    for batch in packed_passes(list(TargetRows(tmp_path / "targets")), 1 << 20):
        loss = objective(**move_pass(batch, torch.device("cpu")))
        loss.backward()
        ours += float(loss.detach())
    found = {name: weight.grad.clone() for name, weight in student.model.named_parameters()}  # type: ignore[union-attr]
    student.model.zero_grad()

    divergences = []
    for each in spans:
        ids = torch.from_numpy(each.token_ids).long()[None]
        with torch.no_grad():
            p = teacher.model(ids).logits[0, :-1].log_softmax(dim=-1)
        q = student.model(ids).logits[0, :-1].log_softmax(dim=-1)
        kept = p.topk(K, dim=-1)
        said, own = kept.values, q.gather(1, kept.indices)
        rest, own_rest = (torch.log1p(-part.exp().sum(dim=-1)) for part in (said, own))
        divergences.append((said.exp() * (said - own)).sum(dim=-1) + rest.exp() * (rest - own_rest))
    theirs = torch.cat(divergences).sum()
    theirs.backward()
    assert ours == pytest.approx(float(theirs.detach()), rel=tolerance)
    for name, weight in student.model.named_parameters():
        assert weight.grad is not None
        assert float((weight.grad - found[name]).norm()) <= tolerance * float(weight.grad.norm()), name
