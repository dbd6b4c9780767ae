"""How it is measured: environments, worker processes, data, rounds, reports. Knows no tool's insides."""
