# The example echo server, in a container: as small a one, and with as few rights, as a server should have.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE pytest_ngi_gevent.py ./
COPY ngi_gevent ngi_gevent
# The wheel goes into an environment without pip, so that the last stage gets neither sources nor tools to build with.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/ngi \
    && pip --python /opt/ngi/bin/python install --no-cache-dir /wheels/*.whl
COPY examples/echo_server.py /opt/ngi/echo_server.py

FROM ${BASE_IMAGE}
COPY --from=build /opt/ngi /opt/ngi
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["/opt/ngi/bin/python", "-c", "\
import socket; \
server = socket.create_connection(('127.0.0.1', 8000), timeout=3); \
server.sendall(b'health'); \
assert server.recv(6) == b'HEALTH'"]
# The close timeout is shorter than the 10 seconds after which engines kill a container that they stop.  Strangers reach
# this server, and those that say nothing do not keep their connections.
CMD ["/opt/ngi/bin/python", "/opt/ngi/echo_server.py", "--bind", "0.0.0.0:8000", "--close-timeout", "8", \
     "--idle-timeout", "300"]
