"""The servers: the same works with each library, written as its users would write them.

``python -m benchmarks.servers.NAME WORK`` serves one of them on a free port of the loopback interface, which it says in
a line on standard output, ``ready PORT``.  It does so until it is killed.

``echo``
    sends back what comes;
``send``
    sends as many bytes as the request says, no faster than they are taken, and closes the connection;
``receive``
    counts what comes, the first eight bytes of which say how much it is, and answers with the count when it is all;
``burst``
    answers whatever comes with 1,000 small writes;
``resp``
    answers the clients of Redis, as ``examples/resp_server.py`` does;
``http``
    answers the clients of HTTP, as ``examples/http_server.py`` does.
"""
