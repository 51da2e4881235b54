"""How fast GPUs could run gradclip's kernels, from the compiled kernels and published rates: a model, made without a GPU.

    python -m pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-nvdisasm && python benchmarks/gpu_model.py [--limits] [--json FILE]

NVRTC compiles the kernels for each architecture and says how many registers and how much memory they take. nvdisasm shows
their loops. In a main loop a thread loads eight packs of 16 bytes (for a step, eight of each array) and uses them. Its
instructions per element, by the unit that executes them, are set against what a multiprocessor executes per clock. The first
table shows kernels, the second loops, the third cards: the tightest of these limits, in per cent of the speed of memory. Above
100 memory is the limit. --limits shows each limit, and what remains if a card never computes while it loads ("serial").

nvdisasm 13 does not know compute capability 7.0: for the V100 the loops are those of 7.5, which has the same instructions. The
model leaves out the first and the last blocks, caches, and clocks that fall under load (L4: far, at 72 W)."""

import argparse
import ctypes
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gradclip._gpu.program import KERNELS, OPTIONS, THREADS, source
from gradclip.cli.terminal import show_table

# Kernels whose loops decide how fast a large leaf is clipped, and the kinds of loops that are looked at in those for cards with
# little float64: a sum in integers, and products of float32 without float64.
MAIN = ("measure_squares", "measure_squares_by_digits", "write_leaves", "write_leaves_in_float32")
OWN = {"measure_squares_by_digits": "digits", "write_leaves_in_float32": "products"}
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 103, 120)
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
ARRAYS = {"norm": 1, "digits": 1, "scale": 2, "products": 2, "step": 3}  # how many times an operation moves each element
PACK = 16  # bytes of a load
TILE = 8  # packs that a thread of a main loop loads before it uses the first


class Multiprocessor(NamedTuple):
    """What a multiprocessor holds, and what it executes in a clock, in operations of single threads."""

    threads: int
    blocks: int
    shared: int  # bytes
    reserved: int  # bytes of shared memory that each block takes beside its own
    float64: int
    convert: int  # conversions between float64 and others
    narrow: int  # other conversions that need an instruction of their own
    float32: int
    integer: int
    multiply: int  # integer multiplications, which are done where those of float32 are
    issue: int  # instructions: one for each thread of a warp, of four warps


# CUDA C++ Programming Guide: "Technical Specifications per Compute Capability" (first four columns) and "Throughput of Native
# Arithmetic Instructions" (the others; convert: "type conversions from and to 64-bit types"; narrow: the rate of special
# functions, and half of `multiply` for products of 64 bits, which are guesses on the low side).
MULTIPROCESSORS = {
    70: Multiprocessor(2048, 32, 96 * 1024, 0, 32, 16, 16, 64, 64, 64, 128),
    75: Multiprocessor(1024, 16, 64 * 1024, 0, 2, 2, 16, 64, 64, 64, 128),
    80: Multiprocessor(2048, 32, 164 * 1024, 1024, 32, 16, 16, 64, 64, 64, 128),
    86: Multiprocessor(1536, 16, 100 * 1024, 1024, 2, 2, 16, 128, 64, 64, 128),
    89: Multiprocessor(1536, 24, 100 * 1024, 1024, 2, 2, 16, 128, 64, 64, 128),
    90: Multiprocessor(2048, 32, 228 * 1024, 1024, 64, 16, 16, 128, 64, 64, 128),
    100: Multiprocessor(2048, 32, 228 * 1024, 1024, 64, 16, 16, 128, 64, 64, 128),
    103: Multiprocessor(2048, 32, 228 * 1024, 1024, 2, 2, 16, 128, 64, 64, 128),
    120: Multiprocessor(1536, 24, 100 * 1024, 1024, 2, 2, 16, 128, 64, 64, 128),
}
UNITS = ("float64", "convert", "narrow", "float32", "integer", "multiply", "issue")


class Card(NamedTuple):
    """What is published of a card."""

    name: str
    architecture: int
    multiprocessors: int
    clock: float  # GHz, the published boost clock
    memory: float  # GB/s


# NVIDIA's data sheets and architecture papers of each card (multiprocessors, boost clock, memory bandwidth). Check: float64 *
# multiprocessors * clock, twice, is the published rate of float64 in GFLOP/s (A100: 9,700, H100, H200: 34,000, B200: 37,000).
CARDS = (
    Card("V100", 70, 80, 1.53, 900),  # SXM2, V100 data sheet, Volta paper
    Card("T4", 75, 40, 1.59, 320),  # T4 data sheet, Turing paper
    Card("A100", 80, 108, 1.41, 2039),  # SXM, 80 GB, A100 data sheet, Ampere paper
    Card("A10", 86, 72, 1.695, 600),  # A10 data sheet
    Card("L4", 89, 58, 2.04, 300),  # L4 data sheet
    Card("L40S", 89, 142, 2.52, 864),  # L40S data sheet
    Card("RTX 4090", 89, 128, 2.52, 1008),  # Ada paper
    Card("H100", 90, 132, 1.98, 3350),  # SXM, H100 data sheet, Hopper paper
    Card("H200", 90, 132, 1.98, 4800),  # SXM, H200 data sheet
    Card("B200", 100, 148, 1.965, 8000),  # SXM, Blackwell data sheet
    Card("B300", 103, 148, 1.965, 8000),  # SXM, Blackwell Ultra data sheet: of float64 it has 1.2 TFLOP/s
    Card("RTX 5090", 120, 170, 2.407, 1792),  # RTX Blackwell paper
)


class Kernel(NamedTuple):
    """What the compiler says of a kernel."""

    name: str
    registers: int
    spills: int  # bytes stored and loaded because registers do not suffice
    stack: int  # bytes of local memory of a thread, arrays that functions which are not inlined take included
    shared: int  # bytes of a block


class Loop(NamedTuple):
    """A main loop: elements that a thread takes in a round, and operations per element by the unit that executes them."""

    operation: str
    dtype: str
    elements: int
    per_element: dict[str, float]


def found(pattern: str) -> list[Path]:
    """Files of NVIDIA's packages, by the pattern of a name."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else map(Path, spec.submodule_search_locations or [])
    return sorted(p for folder in folders for p in folder.rglob(pattern) if p.is_file() and ".alt" not in p.name)


def release(library: Path) -> tuple[int, int]:
    """The version of an NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(str(library)).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compilers() -> list[Path]:
    """The libraries of NVRTC that are installed, the newest last: each knows other architectures."""
    return sorted(found("libnvrtc.so.*") + found("nvrtc64_*.dll"), key=release)


def disassembler() -> str | None:
    """The path of nvdisasm; None if it is not installed."""
    paths = found("nvdisasm") + found("nvdisasm.exe")
    return str(paths[-1]) if paths else shutil.which("nvdisasm")


def architectures(library: Path) -> list[int]:
    """The architectures that an NVRTC compiles for."""
    nvrtc, count = ctypes.CDLL(str(library)), ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    supported = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(supported)
    return list(supported)


def compiled(job: tuple[Path, int, str]) -> tuple[bytes, str]:
    """The cubin of one kernel for one architecture, with the options of CuPy, and what the compiler says."""
    library, architecture, kernel = job
    nvrtc, program, size = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t()
    options = [o.encode() for o in (*OPTIONS, f"-arch=sm_{architecture}", "-ftz=true", "--ptxas-options=-v")]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source((kernel,)).encode(), b"gradclip.cu", 0, None, None)
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    texts = []
    for what in ("ProgramLog", "CUBIN"):
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        texts.append(text.raw)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    log = texts[0].rstrip(b"\0").decode()
    if status:
        raise RuntimeError(f"NVRTC cannot compile {kernel} for {architecture}: {log}")
    return texts[1], log


def kernel_of(log: str, name: str) -> Kernel:
    """A kernel from what the compiler says. Spills are those of the kernel and of all functions that it calls."""
    log = log[log.index(f"Compiling entry function '{name}'") :]
    spills = sum(int(a) + int(b) for a, b in re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log))

    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match[1]) if match else 0

    stack = number(r"(\d+) bytes cumulative stack size") or number(r"(\d+) bytes stack frame")
    return Kernel(name, number(r"Used (\d+) registers"), spills, stack, number(r"(\d+) bytes smem"))


def occupancy(kernel: Kernel, architecture: int) -> tuple[int, float]:
    """Blocks of a kernel that a multiprocessor holds at once, and their share of the threads that it could hold."""
    limits = MULTIPROCESSORS[architecture]
    registers = -(-32 * kernel.registers // 256) * 256  # of a warp: they are given out by 256
    warps = 65536 // 4 // registers * 4  # each of four parts has a quarter of the registers
    shared = -(-kernel.shared // 256) * 256 + limits.reserved
    blocks = min(limits.blocks, limits.threads // THREADS, warps * 32 // THREADS)
    if shared:
        blocks = min(blocks, limits.shared // shared)
    return blocks, blocks * THREADS / limits.threads


def unit_of(instruction: str) -> str | None:
    """The unit that executes an instruction; None: another, which is no limit here (loads, branches, moves in float32's)."""
    name = instruction.split(".")[0]
    if re.fullmatch(r"D(ADD|MUL|FMA|SETP|MNMX)", name):
        return "float64"
    if name in ("F2F", "F2I", "I2F"):
        return "convert" if "F64" in instruction else "narrow"
    if name in ("FMUL", "FADD", "FFMA", "HADD2", "HMUL2", "HFMA2"):
        return "float32"
    if name == "IMAD":
        return "multiply"
    if re.fullmatch(r"V?(IADD3?|IMNMX3?)|LOP3|SHF|PRMT|ISETP|SEL|LEA|F2FP|FSETP|FMNMX|PLOP3|I?ABS|BFE|HMNMX2|VHMNMX", name):
        return "integer"
    return None


def instructions_of(sass: str, kernel: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The instructions of a kernel (name and operands), and where labels lie."""
    section = re.search(rf"^\s*\.section\s+\.text\.{kernel},.*?(?=^\s*\.section\s|\Z)", sass, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError(f"no kernel {kernel} in what nvdisasm shows")
    instructions, labels = [], {}
    for line in section[0].splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        if found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;", line):
            instructions.append((found[1], found[2]))
    return instructions, labels


def loops_of(sass: str, kernel: str) -> list[Loop]:
    """The main loops of a kernel: those that load a whole tile and have no other loop inside.

    Loops of clamps and of plain copies are left out."""
    instructions, labels = instructions_of(sass, kernel)
    spans = []
    for i, (name, operands) in enumerate(instructions):
        target = re.search(r"\.L_\w+", operands) if name.startswith("BRA") else None
        if target and labels.get(target[0], i + 1) <= i:
            spans.append((labels[target[0]], i + 1))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    loops = [loop_of([name for name, _ in instructions[start:end]]) for start, end in inner]
    return [loop for loop in loops if loop and OWN.get(kernel) == (loop.operation if loop.operation in OWN.values() else None)]


def loop_of(names: list[str]) -> Loop | None:
    """What a loop does, told by its instructions; None if it is no main loop.

    What "products" do in float64, for the few that float32 does not tell, is left out."""

    def count(pattern: str) -> int:
        return sum(bool(re.match(pattern, name)) for name in names)

    whole, stores = count(r"LDG?\.E\S*\.128"), count(r"STG?\.E\S*\.128")
    loads = whole + count(r"LDG?\.E\S*\.64") // 2  # where registers are short, a pack comes in two halves
    double, half, widened = count("D(ADD|MUL|FMA)"), count("HADD2"), count(r"F2F\.F64\.F32")
    single, cut = count("FMUL"), count(r"FFMA\.RZ")  # cut: elements that become digits
    if loads < TILE or whole < TILE - 2 or not (double or single or cut):
        return None
    operation = "digits" if cut else "norm" if not stores else "step" if loads == 2 * stores else "scale"
    if operation == "scale" and count("FFMA"):
        operation = "products"
        names = [name for name in names if not re.match(r"DMUL|F2F\.\S*F64", name)]
    packs = stores or loads
    if half:
        dtype = "float16"
    elif cut:
        dtype = "bfloat16" if cut == 8 * loads else "float32"
    elif not widened:
        dtype = "bfloat16" if single else "float64"
    else:
        dtype = "bfloat16" if widened == 8 * loads else "float32"
    elements = packs * PACK // SIZES[dtype]
    used = Counter(unit_of(name) for name in names)
    used["multiply"] += count(r"IMAD\.WIDE")  # each counts twice
    used["float32"] += used["multiply"]
    per_element = {unit: used[unit] / elements for unit in UNITS} | {"issue": len(names) / elements}
    return Loop(operation, dtype, elements, per_element)


def shares(card: Card, loop: Loop) -> dict[str, float]:
    """The speed that each unit allows, over that of memory; and, as "serial", what is left if nothing overlaps."""
    multiprocessor = MULTIPROCESSORS[card.architecture]
    moved = SIZES[loop.dtype] * ARRAYS[loop.operation]  # bytes per element
    elements = card.memory / moved  # per ns, as memory has it
    limits = {}
    for unit in UNITS:
        each = loop.per_element[unit]
        rate = getattr(multiprocessor, unit) * card.multiprocessors * card.clock
        limits[unit] = rate / each / elements if each else float("inf")
    return limits | {"serial": 1 / (1 + 1 / min(limits.values()))}


def tightest(limits: dict[str, float]) -> tuple[str, float]:
    """The unit that allows least, and the share of memory's speed that it allows."""
    return min(((unit, limits[unit]) for unit in UNITS), key=lambda pair: pair[1])


def examine(wanted: dict[int, tuple[str, ...]]) -> tuple[dict[int, list[Kernel]], dict[int, list[Loop]]]:
    """Kernels and main loops by architecture, of what is wanted for it; loops only where nvdisasm is installed and knows it."""
    known = {a: library for library in compilers() for a in architectures(library)}  # by the newest that knows it
    jobs = [(known[a], a, kernel) for a, kernels in wanted.items() if a in known for kernel in kernels]
    show = disassembler()
    resources: dict[int, list[Kernel]] = {}
    loops: dict[int, list[Loop]] = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for (_, architecture, kernel), (cubin, log) in zip(jobs, pool.map(compiled, jobs), strict=True):
            resources.setdefault(architecture, []).append(kernel_of(log, kernel))
            sass = disassembled(show, cubin) if show else None
            if sass:
                loops.setdefault(architecture, []).extend(loops_of(sass, kernel))
    if 70 not in loops and 75 in loops:
        loops[70] = loops[75]
    return resources, loops


def disassembled(show: str, cubin: bytes) -> str | None:
    """The instructions of a cubin; None if nvdisasm does not know its architecture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([show, "-c", str(path)], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout


def percent(share: float) -> str:
    return "-" if share == float("inf") else f"{100 * share:.0f} %"


def show_kernels(resources: dict[int, list[Kernel]]) -> None:
    rows = []
    for architecture, kernels in resources.items():
        for kernel in kernels:
            blocks, share = occupancy(kernel, architecture)
            numbers = map(str, (kernel.registers, kernel.spills, kernel.stack, kernel.shared, blocks))
            rows.append([kernel.name, f"sm_{architecture}", *numbers, percent(share)])
    show_table(["kernel", "", "registers", "spills, B", "stack, B", "shared, B", "blocks", "occupancy"], rows)


def show_loops(loops: dict[int, list[Loop]]) -> None:
    rows = []
    for architecture, some in loops.items():
        for loop in sorted(some, key=lambda loop: list(ARRAYS).index(loop.operation)):
            numbers = (f"{loop.per_element[unit]:.1f}" for unit in UNITS)
            rows.append([f"{loop.operation} {loop.dtype}", f"sm_{architecture}", *numbers])
    show_table(["per element", "", *UNITS[:-1], "all"], rows)


def show_cards(loops: dict[int, list[Loop]], all_limits: bool) -> None:
    rows = []
    for card in CARDS:
        for operation in ARRAYS:
            some = {loop.dtype: shares(card, loop) for loop in loops.get(card.architecture, ()) if loop.operation == operation}
            if all_limits:
                for dtype, limits in some.items():
                    rows.append([f"{card.name} {operation} {dtype}", *(percent(limits[u]) for u in (*UNITS, "serial"))])
            elif some:
                cells = (tightest(some[dtype]) if dtype in some else None for dtype in SIZES)
                rows.append([f"{card.name} {operation}", *(f"{percent(cell[1])} {cell[0]}" if cell else "-" for cell in cells)])
    show_table(["of memory's speed", *((*UNITS, "serial") if all_limits else SIZES)], rows)


def write_json(path: str, resources: dict[int, list[Kernel]], loops: dict[int, list[Loop]]) -> None:
    """All figures: kernels and loops by architecture, shares by card (null: no limit)."""
    cards = [
        {**card._asdict(), "loops": [{"operation": x.operation, "dtype": x.dtype, **shares(card, x)} for x in some]}
        for card in CARDS
        if (some := loops.get(card.architecture))
    ]
    for loop in (loop for card in cards for loop in card["loops"]):
        loop.update({unit: None for unit in UNITS if loop[unit] == float("inf")})
    kernels = {a: [k._asdict() | dict(zip(("blocks", "occupancy"), occupancy(k, a), strict=True)) for k in some]
               for a, some in resources.items()}  # fmt: skip
    text = {"kernels": kernels, "loops": {a: [x._asdict() for x in some] for a, some in loops.items()}, "cards": cards}
    Path(path).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--all", action="store_true", help="compile every kernel, not only the main ones (some minutes)")
    parser.add_argument("--limits", action="store_true", help="show each limit, not only the tightest")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if not compilers():
        sys.exit("NVRTC is not installed: python -m pip install nvidia-cuda-nvrtc-cu12")
    print("NVRTC", ", ".join("{}.{}".format(*release(library)) for library in compilers()))
    resources, loops = examine(dict.fromkeys(options.architectures, KERNELS if options.all else MAIN))
    for architecture in set(options.architectures) - set(resources):
        print(f"sm_{architecture} is left out: no NVRTC that is installed knows it")
    show_kernels(resources)
    if loops:
        print()
        show_loops(loops)
        print()
        show_cards(loops, options.limits)
    else:
        print("No loops, and so no cards: nvdisasm is not installed (python -m pip install nvidia-cuda-nvdisasm)")
    if options.json:
        write_json(options.json, resources, loops)


if __name__ == "__main__":
    main()
