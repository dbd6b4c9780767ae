"""What is measured: one module per tool, run in a process and an environment of its own.

    python -m peers.NAME JOB      in the folder above; JOB is a `peers.job.Job` as JSON

A module's `make` gives a `peers.worker.Trainee`, which trains by the tool's own code with the tool's own defaults,
unless its docstring says otherwise. NAME.txt lists what pip installs for it, NAME.bare.txt what is installed without
what that asks for, because training does not use it.
"""
