"""An hour of attacks on masklet: fuzzed prompts, damaged files, a long video, kills, threads and full disks.

``make soak`` runs all parts; ``make soak ARGS="--only kills --minutes 5"`` runs one. They use the tests' helpers.
Seeds are fixed, and every failure comes with what repeats it.
"""
