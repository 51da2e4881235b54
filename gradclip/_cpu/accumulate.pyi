from gradclip._cpu.plan import Plan
from gradclip._leaves import Leaves

def sum_samples(leaves: Leaves, to: Leaves, plan: Plan, batch: int, fresh: bool = ...) -> None: ...
