"""Plan a model for a number of bytes, look at the plan, and compress."""

import dpq

SOURCE = "builtin:tiny-llama"

# Without data=False the model also reads some text, which takes longer and loses less.
plan = dpq.plan(SOURCE, target_size="3.5MB", data=False)
print(plan.table())

report = dpq.compress(
    SOURCE, "three-and-a-half", target_size="3.5MB", data=False, iterations=2, probe=False
)
assert report.nbytes <= 3_500_000
print(f"{report.nbytes:,} bytes")
