"""The servers: the same works with each library, written in its usual style.

``python -m benchmarks.servers.NAME WORK`` serves one of them on a free port of the loopback interface, until it is
killed.  It prints the line ``ready PORT`` to standard output.

The works are:

* ``echo`` sends back its input;
* ``send`` sends as many bytes as the request says, only as fast as they are read, and closes the connection;
* ``receive`` counts its input, whose first eight bytes give the size, and answers with the count at the end;
* ``burst`` answers each input with 1,000 small writes;
* ``resp`` answers Redis clients, as ``examples/resp_server.py`` does;
* ``http`` answers HTTP clients, as ``examples/http_server.py`` does.
"""
