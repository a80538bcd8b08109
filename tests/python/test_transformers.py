"""Tiny models of transformers 5 with their experts on a real server: the same logits and the same words as alone.

Needs torch and transformers: tests/python/transformers.sh.
"""
import sys

import expertd
import pytest
from conftest import ROOT, Server

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
import expertd.nn  # noqa: E402
import expertd.transformers  # noqa: E402

sys.path.insert(0, str(ROOT / "tests" / "data" / "golden"))
from make_golden import BASE, CASES  # noqa: E402

FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]
# Two layers more than the golden cases have, so that errors could add up.
LAYERS = 3
# Of the largest logit: bf16 has 8 bits, and both sides round at every layer in their own order.
BF16_TOLERANCE = 0.03
TOKENS = torch.arange(3, 33).reshape(2, 15)


def make_checkpoint(family, folder):
    torch.manual_seed(11)
    model_type, extra = CASES[family]
    config = transformers.AutoConfig.for_model(model_type, **{**BASE, **extra, "num_hidden_layers": LAYERS})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.copy_(torch.randn(parameter.shape) * (2.0 if ".gate." in name or ".router." in name else 0.8) / parameter.shape[-1] ** 0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, tmp_path_factory):
    """(family, checkpoint folder, client of a server of it)"""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_checkpoint(request.param, folder / "checkpoint")
    server = Server(folder, "--checkpoint", f"{request.param}={checkpoint}")
    with expertd.Client(server.endpoint) as client:
        yield request.param, checkpoint, client
    assert server.stop() == 0


def load_pair(served, dtype):
    family, checkpoint, client = served
    local = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, experts_implementation="eager")
    remote = expertd.transformers.from_pretrained(checkpoint, client, family, dtype=dtype)
    assert type(remote) is type(local)
    return local.eval(), remote.eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens).logits.float()


def generate(model):
    return model.generate(TOKENS, max_new_tokens=12, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(TOKENS))


def difference(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_same_logits_and_same_words_in_f32(served):
    local, remote = load_pair(served, torch.float32)
    error = difference(logits_of(remote, TOKENS), logits_of(local, TOKENS))
    print(f"\n{served[0]} f32: largest logit difference {error:.1e} of the largest logit")
    assert error <= 1e-5
    assert torch.equal(generate(remote), generate(local))


def test_same_logits_and_same_words_in_bf16(served):
    """A model of random weights is undecided between words (and between experts) now and then. Where the local one is decided by
    more than bf16's error, the remote one must choose the same; generate() is compared exactly in f32, and reported here."""
    local, remote = load_pair(served, torch.bfloat16)
    expected, got = logits_of(local, TOKENS), logits_of(remote, TOKENS)
    error = difference(got, expected)
    best, second = expected.topk(2, dim=-1).values.unbind(-1)
    decided = best - second > 2 * BF16_TOLERANCE * expected.abs().max()
    same = "the same" if torch.equal(generate(remote), generate(local)) else "parts at an undecided word"
    print(f"\n{served[0]} bf16: largest logit difference {error:.1e} of the largest logit, {decided.sum()} of {decided.numel()} words decided; generate() {same}")
    assert error <= BF16_TOLERANCE and decided.float().mean() > 0.4
    assert torch.equal(got.argmax(-1)[decided], expected.argmax(-1)[decided])


def test_the_experts_weights_are_not_here(served):
    local, remote = load_pair(served, torch.bfloat16)
    modules = [experts for _, experts in expertd.transformers.experts_of(remote)]
    assert modules
    for experts in modules:
        assert list(experts.parameters()) and all(parameter.is_meta for parameter in experts.parameters())
    missing = {name for name, parameter in remote.named_parameters() if parameter.is_meta}
    assert missing and all(".experts." in name and ".shared_experts." not in name for name in missing)
    others = dict(remote.named_parameters())
    for name, parameter in local.named_parameters():
        assert name in missing or torch.equal(parameter, others[name]), name
    with torch.no_grad():
        assert remote.to(torch.float32)(TOKENS).logits.dtype == torch.float32  # moving leaves the experts where they are


def test_mistakes_are_told(served):
    family, checkpoint, client = served
    with pytest.raises(LookupError, match="nobody/"):
        expertd.transformers.from_pretrained(checkpoint, client, "nobody")
    expertd.transformers.register()
    unconnected = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="expertd")
    with torch.no_grad(), pytest.raises(RuntimeError, match="connect"):
        unconnected(TOKENS)
    with pytest.raises(RuntimeError, match="forward only"):
        expertd.transformers.connect(unconnected, client, family)(TOKENS)


def test_remote_moe(served):
    family, checkpoint, client = served
    layer = client.layers()[-1].layer
    module = expertd.nn.RemoteMoE(client, family, layer, timeout=10)
    rows = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    output = module(rows)
    assert output.shape == rows.shape and output.dtype == rows.dtype
    routed = client.forward(family, layer, rows, return_routing=True)
    assert torch.equal(output, routed.output)
    ids, weights = torch.tensor(routed.routing.topk_ids), torch.tensor(routed.routing.topk_weights)
    pre_routed = expertd.nn.RemoteMoE(client, family, layer, shared_expert=True)
    assert torch.equal(pre_routed(rows, ids, weights), output)
    with pytest.raises(RuntimeError, match="forward only"):
        module(rows.requires_grad_())
