import math

import pytest
import torch
import torch.nn.functional as F

from vgsplus.losses.grounding import embedding_std, grounding_loss
from vgsplus.losses.ssl import contrastive_loss, diversity_loss, perplexity


def test_contrastive_loss_is_the_one_written_out():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    codes = torch.randint(0, 3, (2, 6, 2))
    negatives = torch.randint(0, 6, (2, 6, 7))
    present = torch.ones(2, 6, dtype=torch.bool)
    present[1, 4:] = False
    terms = []
    for b, m in present.nonzero().tolist():
        logits = [F.cosine_similarity(x[b, m], y[b, m], dim=0) / 0.1]
        for n in negatives[b, m].tolist():
            same = bool((codes[b, n] == codes[b, m]).all())
            logits.append(
                torch.tensor(-math.inf) if same else F.cosine_similarity(x[b, m], y[b, n], dim=0) / 0.1
            )
        terms.append(-torch.stack(logits).log_softmax(0)[0])
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(contrastive_loss(x, y, codes, negatives, present), expected)


def test_diversity_is_zero_for_even_use_and_greatest_for_one_code():
    assert float(diversity_loss(torch.full((2, 8), 1 / 8))) == pytest.approx(0, abs=1e-4)
    one = F.one_hot(torch.tensor([3, 1]), 8).float()
    assert float(diversity_loss(one)) == pytest.approx(14 / 16, abs=1e-4)
    assert float(perplexity(one)) == pytest.approx(2, abs=1e-4)


def test_grounding_loss_is_the_one_written_out():
    torch.manual_seed(1)
    similarity, ids = torch.randn(5, 5), torch.tensor([1, 2, 1, 4, 5])
    expected = 0.0
    for scores in (similarity, similarity.T):
        for i in range(5):
            kept = [float(scores[i, j]) - (i == j) for j in range(5) if i == j or ids[i] != ids[j]]
            own = float(scores[i, i]) - 1
            expected += (math.log(sum(map(math.exp, kept))) - own) / 5
    assert float(grounding_loss(similarity, ids)) == pytest.approx(expected, rel=1e-5)


def test_the_order_of_a_batch_does_not_matter():
    torch.manual_seed(2)
    similarity, ids = torch.randn(6, 6), torch.tensor([1, 2, 1, 4, 5, 5])
    order = torch.randperm(6)
    torch.testing.assert_close(
        grounding_loss(similarity, ids), grounding_loss(similarity[order][:, order], ids[order])
    )


def test_the_standard_deviation_of_embeddings_tells_a_collapse_whatever_their_length():
    torch.manual_seed(3)
    spread = torch.randn(4096, 16)
    assert float(embedding_std(spread)) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(embedding_std(100 * spread), embedding_std(spread))
    assert float(embedding_std(spread[:1] * torch.rand(8, 1))) < 1e-6
