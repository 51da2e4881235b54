"""The model of GPUs: its arithmetic against values worked out by hand, and what the compiler makes of the main kernels.

    python -m pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm && python -m pytest tests/test_gpu_model.py

(The compiler takes 45 seconds of processor time, by as many processes as there are cores. Without NVRTC the second half is
skipped, without nvdisasm the loops are.)"""

import json

import gpu_model
import pytest
from gpu_model import CARDS, MAIN, Card, Kernel, Loop

from gradclip._gpu.program import KERNELS

# The most registers that a main kernel may take. None may spill, and two blocks must fit a multiprocessor: 128 registers do.
MOST_REGISTERS = {"measure_squares": 128, "measure_squares_by_digits": 128, "write_leaves": 112, "write_leaves_in_float32": 112}
# Kernels by an architecture on which they are taken: two whose float64 is fast, and one where it is not.
BOTH = ("measure_squares", "write_leaves")
EXAMINED = {80: BOTH, 90: BOTH, 89: tuple(gpu_model.OWN)}


def card(name):
    return next(c for c in CARDS if c.name == name)


@pytest.mark.parametrize(
    ("registers", "shared", "architecture", "blocks", "share"),
    [
        (128, 0, 80, 2, 0.25),  # 4096 registers a warp, 16 warps
        (32, 0, 80, 8, 1.0),
        (33, 0, 80, 6, 0.75),  # 1280 a warp: 12 for each quarter of 16384
        (32, 50_000, 75, 1, 0.25),  # of 65,536 bytes
        (32, 33_000, 86, 3, 0.5),  # 33,024 and 1024 bytes of 102,400
        (255, 0, 90, 1, 0.125),
    ],
)
def test_occupancy(registers, shared, architecture, blocks, share):
    assert gpu_model.occupancy(Kernel("k", registers, 0, 0, shared), architecture) == (blocks, share)


@pytest.mark.parametrize(("name", "teraflops"), [("V100", 7.8), ("A100", 9.7), ("H100", 34), ("H200", 34), ("B200", 37)])
def test_rates_of_cards_are_the_published_ones(name, teraflops):
    found = card(name)
    rate = gpu_model.MULTIPROCESSORS[found.architecture].float64 * found.multiprocessors * found.clock * 2 / 1000
    assert rate == pytest.approx(teraflops, rel=0.02)


def test_shares():
    """A card of one multiprocessor at 1 GHz: 32 float64 operations and 128 instructions each ns."""
    one = Card("one", 80, 1, 1.0, 16.0)
    none = dict.fromkeys(gpu_model.UNITS, 0.0)
    norm = gpu_model.shares(one, Loop("norm", "float32", 32, none | {"float64": 4.0, "issue": 8.0}))
    # memory: 4 elements a ns; float64: 8; issue: 16
    assert (norm["float64"], norm["issue"], norm["integer"]) == (2, 4, float("inf"))
    assert gpu_model.tightest(norm) == ("float64", 2)
    assert norm["serial"] == pytest.approx(2 / 3)  # 1/4 ns of loading and 1/8 of adding
    scale = gpu_model.shares(one, Loop("scale", "float16", 64, none | {"integer": 64.0, "issue": 64.0}))
    # memory: 4 bytes an element, 4 elements a ns; integer: 1; issue: 2
    assert (scale["integer"], scale["issue"]) == (0.25, 0.5)
    assert scale["serial"] == pytest.approx(1 / 5)
    step = gpu_model.shares(one, Loop("step", "float64", 16, none | {"convert": 4.0}))
    assert step["convert"] == pytest.approx(4 / (16 / 24))


LOG = """ptxas info    : 16 bytes gmem
ptxas info    : Compiling entry function 'f' for 'sm_80'
ptxas info    : Function properties for f
ptxas         .     32 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 93 registers, used 1 barriers, 48 bytes cumulative stack size, 512 bytes smem, 408 bytes cmem[0]
ptxas info    : Function properties for called
ptxas         .     0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


def test_what_the_compiler_says_is_read():
    assert gpu_model.kernel_of(LOG, "f") == Kernel("f", 93, 28, 48, 512)


@pytest.mark.parametrize(
    ("instruction", "unit"),
    [
        ("DFMA", "float64"),
        ("DSETP.GT.AND", "float64"),
        ("F2F.F64.F32", "convert"),
        ("F2F.F32.F64", "convert"),
        ("F2F.F16.F32", "narrow"),
        ("FMUL", "float32"),
        ("FFMA.RZ", "float32"),
        ("IMAD.WIDE.U32", "multiply"),
        ("F2I.TRUNC", "narrow"),
        ("HADD2.F32", "float32"),
        ("IADD3", "integer"),
        ("LOP3.LUT", "integer"),
        ("VIMNMX.U16x2", "integer"),
        ("F2FP.F16.F32.PACK_AB", "integer"),
        ("LD.E.128", None),
        ("BRA", None),
        ("NOP", None),
    ],
)
def test_units(instruction, unit):
    assert gpu_model.unit_of(instruction) == unit


def disassembly(*loops, kernel="f"):
    lines = [f'\t.section\t.text.{kernel},"ax",@progbits', '\t.sectioninfo\t@"SHI_REGISTERS=9"', f"{kernel}:"]
    for n, body in enumerate(loops):
        lines += [f".L_x_{n}:", *(f"        /*{i:04x}*/    {line} ;" for i, line in enumerate(body))]
        lines += [f"        /*ffff*/    @!P0 BRA `(.L_x_{n}) ;"]
    return "\n".join([*lines, '\t.section\t.text.g,"ax",@progbits', "        /*0000*/    EXIT ;"])


LOAD, STORE = "@P1 LD.E.128 R4, [R2]", "ST.E.128 [R2], R4"
APART = ["F2F.F64.F32 R8, R2", "DMUL R8, R8, R10", "F2F.F32.F64 R2, R8"]
PRODUCT = ["FMUL R1, R2, R3", "FFMA R5, R2, R3, -R1", *APART]


@pytest.mark.parametrize(
    ("body", "operation", "dtype", "elements"),
    [
        ([LOAD] * 8 + ["DADD R1, R2, R3"] * 160, "norm", "float64", 16),
        ([LOAD] * 7 + ["LD.E.64 R4, [R2]"] * 2 + ["DADD R1, R2, R3"] * 160, "norm", "float64", 16),
        ([LOAD] * 8 + ["F2F.F64.F32 R1, R2"] * 32 + ["DFMA R1, R2, R3, R4"] * 64, "norm", "float32", 32),
        ([LOAD] * 8 + ["F2F.F64.F32 R1, R2"] * 64 + ["DFMA R1, R2, R3, R4"] * 64, "norm", "bfloat16", 64),
        ([LOAD] * 8 + ["HADD2.F32 R1, -RZ, R2.H0_H0"] * 64 + ["DFMA R1, R2, R3, R4"] * 64, "norm", "float16", 64),
        ([LOAD] * 8 + ["FFMA.RZ R1, R2, R3, R4"] * 32 + ["FADD R1, R2, R3"] * 9, "digits", "float32", 32),
        ([LOAD] * 8 + ["FFMA.RZ R1, R2, R3, R4"] * 64, "digits", "bfloat16", 64),
        ([LOAD] * 8 + ["HADD2.F32 R1, -RZ, R2.H0_H0"] * 64 + ["FFMA.RZ R1, R2, R3, R4"] * 64, "digits", "float16", 64),
        ([LOAD] * 8 + PRODUCT * 32 + [STORE] * 8, "products", "float32", 32),
        ([LOAD] * 8 + ["FMUL R1, R2, R3"] * 64 + [STORE] * 8, "scale", "bfloat16", 64),
        ([LOAD] * 16 + ["DADD R1, R2, R3"] * 16 + [STORE] * 8, "step", "float64", 16),
    ],
)
def test_main_loops_are_found(body, operation, dtype, elements):
    short = [LOAD] * 4 + ["DADD R1, R2, R3"] * 8  # not a whole tile
    copy = [LOAD] * 8 + [STORE] * 8
    kernel = {own: name for name, own in gpu_model.OWN.items()}.get(operation, "f")
    (loop,) = gpu_model.loops_of(disassembly(short, body, copy, kernel=kernel), kernel)
    assert (loop.operation, loop.dtype, loop.elements) == (operation, dtype, elements)
    counted = [line for line in body if operation != "products" or line not in APART]
    assert loop.per_element["issue"] == (len(counted) + 1) / elements
    assert loop.per_element["float64"] == sum(line.startswith("D") for line in counted) / elements


def test_a_product_of_64_bits_counts_twice_for_both_units_that_it_occupies():
    body = (
        [LOAD] * 8 + ["FFMA.RZ R1, R2, R3, R4"] * 32 + ["IMAD.WIDE.U32 R2, R4, R4, R2"] * 32 + ["IMAD.MOV R1, R2, R3, R4"] * 16
    )
    (loop,) = gpu_model.loops_of(disassembly(body, kernel="measure_squares_by_digits"), "measure_squares_by_digits")
    assert (loop.per_element["multiply"], loop.per_element["float32"]) == (2.5, 3.5)
    assert gpu_model.loops_of(disassembly(body), "f") == []  # another kernel than the one that is taken


def test_a_kernel_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no kernel h"):
        gpu_model.loops_of(disassembly([LOAD]), "h")


def test_figures_can_be_written(tmp_path):
    loop = Loop("norm", "float32", 32, dict.fromkeys(gpu_model.UNITS, 0.0) | {"float64": 4.0, "issue": 8.0})
    gpu_model.write_json(str(tmp_path / "f"), {80: [Kernel("f", 128, 0, 0, 0)]}, {80: [loop]})
    found = json.loads((tmp_path / "f").read_text(encoding="utf-8"))
    assert found["kernels"]["80"][0] | {"name": "f", "blocks": 2, "occupancy": 0.25} == found["kernels"]["80"][0]
    assert [c["name"] for c in found["cards"]] == ["A100"]
    assert found["cards"][0]["loops"][0]["integer"] is None
    assert found["cards"][0]["loops"][0]["float64"] > 1


def test_main_kernels_are_kernels():
    assert set(MAIN) == set(MOST_REGISTERS)
    assert set(MAIN) <= set(KERNELS)


@pytest.fixture(scope="module")
def examined():
    if not gpu_model.compilers():
        pytest.skip("NVRTC is not installed")
    return gpu_model.examine(EXAMINED)


@pytest.mark.parametrize("architecture", EXAMINED)
def test_main_kernels_do_not_spill(examined, architecture):
    kernels, names = examined[0][architecture], EXAMINED[architecture]
    assert [kernel.name for kernel in kernels] == list(names)
    assert {kernel.name: kernel.spills for kernel in kernels} == dict.fromkeys(names, 0)
    assert {k.name: k.registers for k in kernels if k.registers > MOST_REGISTERS[k.name]} == {}
    assert min(gpu_model.occupancy(kernel, architecture)[0] for kernel in kernels) >= 2


@pytest.mark.parametrize("architecture", EXAMINED)
def test_every_dtype_has_its_main_loops(examined, architecture):
    if gpu_model.disassembler() is None:
        pytest.skip("nvdisasm is not installed")
    loops = {(loop.operation, loop.dtype): loop for loop in examined[1][architecture]}
    if architecture == 89:
        wanted = [("products", "float32"), *(("digits", dtype) for dtype in ("float16", "bfloat16", "float32"))]
    else:
        wanted = [(operation, dtype) for operation in ("norm", "scale", "step") for dtype in gpu_model.SIZES]
    assert sorted(loops) == sorted(wanted)
    for (operation, dtype), loop in loops.items():
        assert loop.elements == 128 // gpu_model.SIZES[dtype]
        most = {"norm": 10.5 if dtype == "float64" else 4.5, "digits": 0, "scale": 1, "products": 0.2, "step": 2}[operation]
        assert loop.per_element["float64"] <= most
        if architecture == 89:
            assert loop.per_element["issue"] <= 18


@pytest.mark.parametrize("name", ["L4", "L40S", "RTX 4090"])
def test_memory_is_the_limit_on_cards_with_little_float64(examined, name):
    if gpu_model.disassembler() is None:
        pytest.skip("nvdisasm is not installed")
    shares = [gpu_model.shares(card(name), loop) for loop in examined[1][89]]
    assert min(gpu_model.tightest(limits)[1] for limits in shares) > 4
    assert min(limits["serial"] for limits in shares) > 0.8
