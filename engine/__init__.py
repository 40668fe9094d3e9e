"""What runs the method. Every command imports a file of it before it imports torch, so this counts:

A thread of OpenMP that waits for others spins, for milliseconds by default. Beside another program
that is busy, the thread that it waits for then does not run, and sampling is up to 30 times slower.
So let it sleep. On an idle machine this costs a model of 5 million parameters 30 % of its sampling
and nothing that was seen of its training (results/threads.md); smaller ones use one thread anyway.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
