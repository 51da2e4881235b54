"""DTensor gradients in `gradclip.torch`: real processes over gloo, compared with one process that has the whole tensors.

Each number of ranks runs all cases of dtensor_process.py in one go."""

import importlib
import json
import math
from pathlib import Path

import launch
import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)
if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
    pytest.skip("this PyTorch, before 2.6, has no fully_shard", allow_module_level=True)
from dtensor_process import CASES, gradients, train  # noqa: E402

import gradclip.torch as ours  # noqa: E402


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What each rank found, by case."""
    program = Path(__file__).with_name("dtensor_process.py")
    outputs = launch.by_gloo(request.param, tmp_path_factory.mktemp("ranks"), program)
    lines = [[line for line in output.splitlines() if line.startswith("CASE ")] for output in outputs]
    found = [dict(json.loads(line[5:]) for line in of_rank) for of_rank in lines]
    assert all(list(f) == CASES for f in found)
    return found


def alone(dtype=torch.float64, max_norm=1.0, order=2.0, grads=None):
    """The norm that one process finds in whole tensors, to the last bit, and what it makes of them."""
    grads = gradients(dtype) if grads is None else grads
    made = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for p, grad in zip(made, grads, strict=True):
        p.grad = grad.clone()
    norm = ours.clip_grad_norm_(made, max_norm, order)
    return norm.item().hex(), [p.grad.double().tolist() for p in made]


def check(found, expected, kind):
    assert (found["norm"], found["grads"]) == expected
    assert found["type"] == kind


@pytest.mark.parametrize("case", ["rows", "columns", "replicas", "hybrid", "turned", "both", "patched", "halfway"])
def test_gradients_on_one_mesh_are_clipped_as_whole_ones_are(ranks, case):
    for rank in ranks:
        check(rank[case], alone(), "DTensor")  # as PyTorch returns the norm


@pytest.mark.parametrize("case", ["several", "parts", "part"])
def test_several_meshes_and_plain_tensors_have_one_norm(ranks, case):
    for rank in ranks:
        check(rank[case], alone(), "Tensor")


def test_meshes_without_a_rank_in_common(ranks):
    for rank in ranks:
        assert rank["halves"] == {"norm": alone()[0], "type": "Tensor", "grads": []}


def test_strided_shards(ranks):
    for rank in ranks:
        assert rank["strided"]["norm"] == alone(grads=[grad.repeat(4, 1) for grad in gradients()])[0]


def test_arguments_that_one_rank_alone_has_are_an_error_on_all(ranks):
    *others, failed = [rank["unlike"] for rank in ranks]
    for found in (*others, failed):
        assert [text[:47] for text in found[:3]] == ["ValueError: the arguments differ between ranks "] * 3
    told = "ValueError: could not convert string to float: 'x'"
    assert failed[3] == told
    assert all(f[3] == f"RuntimeError: rank {len(ranks) - 1} failed: {told}; no rank wrote anything" for f in others)


def test_ranks_that_are_in_no_mesh(ranks):
    for rank in ranks[:2]:
        check(rank["pair"], alone(), "DTensor")
    assert all(rank["pair"] is None for rank in ranks[2:])
    check(ranks[0]["outside"], alone(), "DTensor")
    for i, rank in enumerate(ranks[1:], 1):
        assert rank["outside"]["error"] == "ValueError"
        assert f"rank {i}, is in none of the meshes" in rank["outside"]["text"]


def test_meshes_that_no_group_spans_are_refused_with_the_reason(ranks):
    if len(ranks) == 2:
        assert ranks[0]["chain"]["norm"] == alone()[0]
        return
    for rank in ranks[:3]:
        assert rank["chain"]["error"] == "ValueError"
        assert "hold the ranks [0, 1, 2], and no mesh or part of one holds just these" in rank["chain"]["text"]
    assert "rank 3, is in none of the meshes" in ranks[3]["chain"]["text"]


def test_other_orders_thresholds_and_dtypes(ranks):
    for rank in ranks:
        for order, found in zip((1.0, 3.0, math.inf), rank["orders"], strict=True):
            check(found, alone(order=order), "DTensor")
        check(rank["inside"], alone(max_norm=1e9), "DTensor")
        check(rank["bfloat16"], alone(torch.bfloat16), "DTensor")
        assert rank["memory"] is None  # its assertions hold


def test_values_are_clipped_where_they_lie(ranks):
    expected = [grad.clamp(-1.5, 1.5).tolist() for grad in gradients()]
    for rank in ranks:
        assert rank["values"]["grads"] == expected * 2


def test_ranks_without_gradients_take_part(ranks):
    size = len(ranks)
    rows = [chunks[0] for grad in gradients() if (chunks := grad.chunk(size))]
    for rank in ranks:
        assert rank["first"]["norm"] == alone(grads=rows)[0]
        assert rank["nobody"]["norm"] == (0.0).hex()


def test_nan_on_one_rank_is_found_by_all(ranks):
    for rank in ranks:
        (error, untouched), (is_nan, same) = rank["nan"]
        assert error.startswith("The total norm of order 2.0 for gradients from `parameters` is non-finite")
        assert untouched
        assert is_nan
        assert not same  # every element became NaN
        assert rank["spike"] == [True, True, [f"rank {len(ranks) - 1}: 0/2", 0]]


def test_thresholds_that_differ_are_an_error_on_all(ranks):
    for rank in ranks:
        assert rank["differ"]["error"] == "ValueError"
        assert "the arguments differ between ranks" in rank["differ"]["text"]


def test_terms_of_a_sum_are_refused_with_the_reason(ranks):
    for rank in ranks:
        *errors, scaled = rank["terms"]
        assert len(errors) == 3
        assert all("gradient 1 of shape (3, 2) has the placements (Partial(sum),)" in text for text in errors)
        assert scaled == len(ranks) / (2.0 + 1e-6)


def test_what_the_library_does_not_do_is_left_to_pytorch_by_all(ranks):
    for rank in ranks:
        assert float.fromhex(rank["left"]["norm"]) == len(gradients())  # norm_type 0 counts the norms


def test_training_with_fsdp2_has_the_bits_of_one_process(ranks):
    plain, attached = train(), [train(attached=True, fold=fold) for fold in (False, True)]
    for rank in ranks:
        assert rank["fsdp2"] == rank["offloaded"] == plain
        assert rank["attached"][0] == attached[0]
        (norms, weights), (expected, others) = rank["attached"][1], attached[1]
        assert norms[0] == expected[0]
        for found, other in zip(weights, others, strict=True):  # fused optimizers round by place in a shard
            torch.testing.assert_close(torch.tensor(found), torch.tensor(other), rtol=1e-5, atol=1e-6)


def test_the_program_of_the_page_clips(ranks):
    for rank in ranks:
        assert rank["page"] == pytest.approx(1.0, rel=1e-5)
