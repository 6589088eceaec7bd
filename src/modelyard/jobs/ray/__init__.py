"""The executor over a Ray cluster: the same launchers, sandboxes and supervisors as on one machine, on many.

What differs from `jobs.executor` is where a launcher is started and how its lines travel. On each node one detached actor
(`host`) holds a supervisor and a `LocalExecutor`; control speaks with it in JSON bytes (`link`) and puts the parts of a gang
together again (`gang`). `cluster` alone knows Ray.
"""
