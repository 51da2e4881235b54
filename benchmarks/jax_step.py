"""What clipping costs in a compiled step of JAX: without, with Optax's, and with gradclip's in the two ways to call it.

    python benchmarks/jax_step.py

Contenders take turns in one process, best of many: the ratios say more than the numbers."""

from time import perf_counter

import jax
import jax.numpy as jnp
import optax

from gradclip.jax import clip_by_global_norm, deciding

SIZES = {
    "one leaf of 10": [10],
    "6 leaves of 1000": [1000] * 6,
    "148 leaves of 100,000": [100_000] * 148,
    "one leaf of 25,000,000": [25_000_000],
}
CONTENDERS = {
    "no clipping": optax.identity(),
    "Optax": optax.clip_by_global_norm(1.0),
    "gradclip": clip_by_global_norm(1.0),
    "gradclip, pure_callback": clip_by_global_norm(1.0),
}
USUAL = deciding.buffer_callback


def main(seconds: float = 4.0) -> None:
    """Print microseconds per step, the fastest of many; the contenders take turns."""
    print(f"{'':24}" + "".join(f"{name:>24}" for name in CONTENDERS))
    for name, sizes in SIZES.items():
        keys = jax.random.split(jax.random.key(0), len(sizes))
        grads = [jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)]
        params = [jnp.zeros_like(grad) for grad in grads]
        steps = {}
        for contender, clip in CONTENDERS.items():
            deciding.buffer_callback = None if "pure" in contender else USUAL
            deciding._finder.cache_clear()
            optimizer = optax.chain(clip, optax.sgd(1e-3))
            state = optimizer.init(params)

            def step(params, grads, optimizer=optimizer, state=state):
                return optax.apply_updates(params, optimizer.update(grads, state)[0])

            steps[contender] = jax.jit(step)
            jax.block_until_ready(steps[contender](params, grads))  # compiled, while it is chosen how to call
        best = dict.fromkeys(steps, float("inf"))
        until = perf_counter() + seconds
        while perf_counter() < until:
            for contender, compiled in steps.items():
                start = perf_counter()
                jax.block_until_ready(compiled(params, grads))
                best[contender] = min(best[contender], perf_counter() - start)
        print(f"{name:24}" + "".join(f"{1e6 * best[contender]:21,.0f} us" for contender in CONTENDERS), flush=True)


if __name__ == "__main__":
    main()
