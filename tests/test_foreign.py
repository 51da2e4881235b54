"""Leaves that are not NumPy arrays: buffers, DLPack, scipy.sparse, PyTorch, JAX, subclasses."""

import array
import ctypes
import math
import warnings

import numpy as np
import pytest
import scipy.sparse
from reference import misaligned

import gradclip
from gradclip._leaves.leaves import Leaves


def test_buffers_and_array_interfaces():
    memory = array.array("f", [3.0, 4.0])
    assert gradclip.clip_by_global_norm_(memory, 1.0).norm == 5.0
    assert list(memory) == [np.float32(0.6), np.float32(0.8)]
    raw = bytearray(16)
    view = memoryview(raw).cast("d")
    view[0], view[1] = 3.0, 4.0
    gradclip.clip_by_global_norm_({"v": view}, 2.5)
    assert list(view) == [1.5, 2.0]

    class Exporter:
        def __init__(self, a):
            self.__array_interface__ = a.__array_interface__
            self.kept = a

    a = np.array([3.0, 4.0])
    gradclip.clip_by_global_norm_(Exporter(a), 2.5)
    assert a.tolist() == [1.5, 2.0]

    class Capsule:
        def __init__(self, a):
            self.kept = a

        def __dlpack__(self, **kw):
            return self.kept.__dlpack__(**kw)

        def __dlpack_device__(self):
            return self.kept.__dlpack_device__()

    a = np.array([3.0, 4.0])
    gradclip.clip_by_global_norm_([Capsule(a)], 2.5)
    assert a.tolist() == [1.5, 2.0]
    ctypes_array = (ctypes.c_float * 2)(3.0, 4.0)
    gradclip.clip_by_global_norm_(ctypes_array, 2.5)
    assert list(ctypes_array) == [1.5, 2.0]
    with pytest.raises(TypeError, match="0: dtype int32"):
        gradclip.global_norm([array.array("i", [1])])


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array", "bsr_array"])
def test_sparse_leaves_are_their_stored_values(kind):
    dense = np.zeros((4, 6))
    dense[0, 1], dense[2, 2] = 3.0, 4.0
    sparse = getattr(scipy.sparse, kind)(dense)
    clipped, report = gradclip.clip_by_global_norm([sparse], 1.0)
    assert report.norm == 5.0
    assert type(clipped[0]) is type(sparse)
    assert np.allclose(clipped[0].toarray(), dense / 5)
    assert np.allclose(sparse.toarray(), dense)
    gradclip.clip_by_global_norm_([sparse], 1.0)
    assert np.allclose(sparse.toarray(), dense / 5)


@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array", "coo_matrix"])
def test_sparse_duplicates_are_summed_first(kind):
    def twice():
        coo = scipy.sparse.coo_array(([4.0, 1.5, 1.5], ([1, 0, 0], [1, 0, 0])), shape=(2, 2))
        if kind.startswith("coo"):
            return getattr(scipy.sparse, kind)(coo)
        return getattr(scipy.sparse, kind)(([1.5, 1.5, 4.0], [0, 0, 1], [0, 2, 3]), shape=(2, 2))

    sparse = twice()
    assert gradclip.global_norm(sparse) == 5.0
    clipped, _ = gradclip.clip_by_global_norm([sparse], 2.5)
    assert np.allclose(clipped[0].toarray(), np.diag([1.5, 2.0]))
    with pytest.raises(TypeError, match="^b: "):
        gradclip.clip_by_global_norm_({"a": sparse, "b": np.ones(2, int)}, 1.0)
    gradclip.clip_by_global_norm_([sparse], 9.0)
    assert sparse.data.tolist() == twice().data.tolist()  # untouched so far
    gradclip.clip_by_global_norm_([sparse], 2.5)
    assert np.allclose(sparse.toarray(), np.diag([1.5, 2.0]))
    assert sparse.nnz == 2


def test_sparse_out_must_have_the_same_pattern():
    a, b = scipy.sparse.csr_array(np.eye(3)), scipy.sparse.csr_array(np.fliplr(np.eye(3)))
    with pytest.raises(ValueError, match="^grads: the stored values of out stand at other places"):
        gradclip.clip_by_global_norm(a, 0.1, out=b)
    c = a.copy()
    gradclip.clip_by_global_norm(a, math.sqrt(3) / 2, out=c)
    assert np.allclose(c.toarray(), np.eye(3) / 2)


def in_parts(kind, data=(1.5, 1.5, 4.0)):
    """A sparse leaf, one of whose elements is stored in two parts, with `data` itself for its values."""
    data = np.asarray(data)
    if kind == "coo":
        return scipy.sparse.coo_array((data, ([0, 0, 1], [0, 0, 1])), shape=(2, 2))
    return scipy.sparse.csr_array((data, [0, 0, 1], [0, 2, 3]), shape=(2, 2))


@pytest.mark.parametrize("kind", ["csr", "coo"])
def test_sparse_leaves_in_parts_pass_the_same_gate(kind):
    """Their own memory is checked, not that of the copy in which duplicates are summed."""
    leaf = in_parts(kind)
    twin, view = in_parts(kind), in_parts(kind)
    twin.data = leaf.data
    view.data = leaf.data[::-1]
    for grads, message in (
        ([leaf, leaf], "^0 and 1 share memory"),
        ([leaf, twin], "^0 and 1 share memory"),
        ([leaf, view], "^0 and 1 share memory"),
        ([leaf, np.ones(2), leaf.data[1:2]], "^0 and 2 share memory"),
    ):
        with pytest.raises(ValueError, match=message):
            gradclip.clip_by_global_norm_(grads, 0.5)
        assert gradclip.global_norm(grads) > 5.0  # reading is fine
    assert leaf.data.tolist() == [1.5, 1.5, 4.0]
    leaf.data.flags.writeable = False
    with pytest.raises(ValueError, match="^1: read-only"):
        gradclip.clip_by_global_norm_([np.ones(2), leaf], 0.5)
    with pytest.raises(ValueError, match="^1: read-only"):
        gradclip.clip_by_global_norm([np.ones(2), in_parts(kind)], 0.5, out=[np.ones(2), leaf])
    with pytest.raises(TypeError, match="^1: dtype int64"):
        gradclip.clip_by_global_norm_([np.ones(2), in_parts(kind, [1, 2, 3])], 0.5)


def test_sparse_leaves_without_an_array_of_values_are_refused():
    leaf = in_parts("csr")
    leaf.data = [1.5, 1.5, 4.0]
    with pytest.raises(TypeError, match="^1: .*keeps its values in no array, but in a list"):
        gradclip.global_norm([np.ones(2), leaf])


def test_sums_of_samples_are_not_sparse():
    out = scipy.sparse.csr_array(np.diag([1.0, 2.0]))
    with pytest.raises(TypeError, match="^0: out is sparse"):
        gradclip.per_sample_clip_sum([np.ones((3, 2))], 0.5, out=[out])
    assert out.data.tolist() == [1.0, 2.0]


def test_dok_and_other_sparse_formats_are_refused_by_name():
    for kind in ("dok", "lil", "dia"):
        with pytest.raises(TypeError, match=f"^emb: scipy.sparse format '{kind}'"):
            gradclip.global_norm({"emb": scipy.sparse.eye_array(3, format=kind)})


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        t = torch.tensor([3.0, 4.0], dtype=dtype)
        clipped, report = gradclip.clip_by_global_norm({"t": t}, 2.5)
        assert report.norm == 5.0
        assert clipped["t"].dtype == dtype
        assert clipped["t"].tolist() == [1.5, 2.0]
        assert t.tolist() == [3.0, 4.0]
        gradclip.clip_by_global_norm_(t, 2.5)
        assert t.tolist() == [1.5, 2.0]


def test_torch_parameters_are_not_mistaken_for_gradients():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 1)
    before = [p.tolist() for p in layer.parameters()]
    with pytest.raises(TypeError, match=r"^0: .*pass p\.grad"):
        gradclip.clip_by_global_norm_(layer.parameters(), 1e-3)
    assert [p.tolist() for p in layer.parameters()] == before
    layer(torch.ones(1, 2)).sum().backward()
    report = gradclip.clip_by_global_norm_([p.grad for p in layer.parameters()], 1e-3)
    assert report.clipped


def test_jax_arrays_in_functional_forms():
    jax = pytest.importorskip("jax")
    for dtype in (jax.numpy.float32, jax.numpy.bfloat16, jax.numpy.float16):
        x = jax.numpy.array([3.0, 4.0], dtype)
        clipped, report = gradclip.clip_by_global_norm([x], 2.5)
        assert report.norm == 5.0
        assert isinstance(clipped[0], jax.Array)
        assert clipped[0].dtype == dtype
        assert clipped[0].tolist() == [1.5, 2.0]
        with pytest.raises(ValueError, match="read-only"):
            gradclip.clip_by_global_norm_([x], 2.5)


def jax_on_the_host():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "cpu":
        pytest.skip("JAX makes its arrays on a GPU")
    return jax


@pytest.mark.parametrize("shape", [(), (0,), (7,), (300, 70), (1, 0, 3)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_results_for_jax_are_not_copied(dtype, shape):
    jax = jax_on_the_host()
    grads = {"a": jax.numpy.ones(shape, dtype), "b": np.ones(3, np.float32), "c": [jax.numpy.ones(2, dtype)]}
    leaves = Leaves(grads, anew=True)
    to = leaves.target()
    for made in to.arrays:
        made[...] = 2
    made = leaves.rebuild(to.arrays)
    for x, memory in zip([made["a"], made["c"][0]], [to.arrays[0], to.arrays[2]], strict=True):
        assert isinstance(x, jax.Array)
        assert x.dtype == dtype
        assert not x.weak_type
        assert np.array_equal(np.asarray(x, np.float32), np.full(x.shape, 2, np.float32))
        assert x.size == 0 or x.unsafe_buffer_pointer() == memory.ctypes.data
    assert made["b"] is to.arrays[1]


def test_results_lie_on_the_device_that_was_chosen_for_a_jax_array():
    jax = jax_on_the_host()
    chosen = jax.device_put(np.array([3.0, 4.0], np.float32), jax.devices("cpu")[0])
    usual = jax.numpy.array([0.0], np.float32)
    assert (chosen.committed, usual.committed) == (True, False)
    clipped, _ = gradclip.clip_by_global_norm([usual, chosen, usual], 2.5)
    assert [x.committed for x in clipped] == [False, True, False]
    assert [x.tolist() for x in clipped] == [[0.0], [1.5, 2.0], [0.0]]
    assert clipped[1].devices() == chosen.devices()


def test_sums_of_samples_of_jax():
    jax = pytest.importorskip("jax")
    sums, _ = gradclip.per_sample_clip_sum([jax.numpy.ones((3, 5)), jax.numpy.zeros((3,))], 100.0)
    assert all(isinstance(x, jax.Array) for x in sums)
    assert [x.tolist() for x in sums] == [[3.0] * 5, 0.0]


def test_ndarray_subclasses_and_memmaps(tmp_path):
    m = np.memmap(tmp_path / "grad.bin", np.float32, "w+", shape=(2,))
    m[:] = [3, 4]
    gradclip.clip_by_global_norm_([m], 2.5)
    assert m.tolist() == [1.5, 2.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        assert gradclip.global_norm(np.asmatrix([[3.0, 4.0]])) == 5.0


def test_misaligned_leaves(isa):
    for dtype in (np.float16, np.float32, np.float64, np.complex64):
        a = misaligned(np.array([3.0, 4.0], dtype))
        assert gradclip.clip_by_global_norm_(a, 2.5).norm == 5.0
        assert a.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("interface", ["__array_interface__", "__dlpack__", "__dlpack_device__", "__cuda_array_interface__"])
@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError, ZeroDivisionError])
def test_an_object_that_fails_when_it_is_asked_for_its_memory_is_named(interface, error):
    class Failing:
        def __getattr__(self, name):
            if name == interface:
                raise error("of its own")
            if interface == "__dlpack_device__" and name == "__dlpack__":
                return None
            raise AttributeError(name)

    grads = [np.ones(2), {"inner": Failing()}]
    with pytest.raises(TypeError, match=r"1/inner: .*Failing gives NumPy no view of its memory"):
        gradclip.clip_by_global_norm_(grads, 0.5)
    assert grads[0].tolist() == [1, 1]
