"""The composition root: settings in, wired processes out. The one room that knows every implementation.

One module a process, each loaded when it is started, so that the supervisor holds no database and the gateway no management
API: `supervise` (`up` and `node`), `control`, `gateway`, and `migrate`, which makes the data folder and the database ready.
"""
