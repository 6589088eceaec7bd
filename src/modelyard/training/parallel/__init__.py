"""Strategies of parallelism, applied to a network from outside: its own code knows none.

`spread` applies them in this order, each in its file, each where the mesh or the options ask for it:

1. `cut`: a stage of the pipe keeps its sub-modules of the sequence;
2. `tensor`: named layers are computed in parts;
3. `recompute`: blocks forget what they computed and compute it again;
4. `compile`: blocks are compiled;
5. `shard`: blocks are held in parts (FSDP2, HSDP), in bf16 too;
6. `data`: where every rank holds everything, gradients are averaged (DDP);
7. `pipe`: the pieces of a step pass through the stages.

Before that the whole lies in main memory where it is going to be split, afterwards each rank's part on its device (`home`).
`verify` then has the network answer and differentiate a few rows and compares with the whole one.
"""

from modelyard.training.parallel.home import home
from modelyard.training.parallel.spread import Options, Spread, spread
from modelyard.training.parallel.steps import Measure, Sums
from modelyard.training.parallel.verify import Whole, verify, whole

__all__ = ["Measure", "Options", "Spread", "Sums", "Whole", "home", "spread", "verify", "whole"]
