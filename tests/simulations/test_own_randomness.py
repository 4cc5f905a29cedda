import threading

import torch
from cornac.models.sasrec.sasrec import SASRecModel
from torch import nn

from simulations.own_randomness import OwnAttention, OwnDropout, own_randomness


def network(seed: int) -> SASRecModel:
    made = SASRecModel(30, embedding_dim=16, maxlen=8, n_layers=2, n_heads=1, dropout=0.2)
    own_randomness(made, seed)
    return made


def test_attention_without_dropout_is_torch_s_own() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 1, 0.0)
    ours = OwnAttention(theirs, OwnDropout(0.0, torch.Generator()))
    query, key = torch.randn(2, 7, 3, 16)
    mask = torch.zeros(3, 7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
    expected, _ = theirs(query, key, key, attn_mask=mask)
    torch.testing.assert_close(ours(query, key, key, attn_mask=mask)[0], expected)


def test_dropout_keeps_the_mean_and_its_rate() -> None:
    drop = OwnDropout(0.2, torch.Generator().manual_seed(1))
    out = drop(torch.ones(200_000))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert abs(float((out == 0).float().mean()) - 0.2) < 0.005
    assert torch.equal(drop.eval()(torch.ones(5)), torch.ones(5))


def test_initial_weights_have_the_spread_that_the_network_came_with() -> None:
    made, plain = network(3), SASRecModel(30, embedding_dim=16, maxlen=8, n_layers=2, n_heads=1)
    ours = {n.replace(".attention.", "."): p for n, p in made.named_parameters()}
    for name, theirs in plain.named_parameters():
        assert ours[name].shape == theirs.shape
        if theirs.numel() > 400:
            assert 0.8 < float(ours[name].detach().std() / theirs.detach().std()) < 1.25, name
        if not theirs.any():
            assert not ours[name].any(), name
    assert not made.item_emb.weight[30].any()
    assert not any(isinstance(m, nn.Dropout) for m in made.modules())


def test_a_seed_repeats_whatever_another_thread_draws() -> None:
    histories = torch.arange(24).view(3, 8)
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(1000)

    other = threading.Thread(target=draw)
    other.start()
    try:
        first, second = (network(5).train() for _ in range(2))
        for _ in range(20):
            outs = [
                n(None, histories, histories[:, 0], return_hidden=True) for n in (first, second)
            ]
            assert torch.equal(outs[0][0], outs[1][0])
    finally:
        stop.set()
        other.join()
    assert not torch.equal(network(6).item_emb.weight, first.item_emb.weight)
