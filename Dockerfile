# The example echo server, in a container: as small a one, and with as few rights, as a server should have.
#
# The tag is for readers; the digest decides.  To renew both:  docker buildx imagetools inspect python:3.13-slim
ARG BASE_IMAGE=python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY examples/container ./
# The environment is without pip, and gets a wheel, so that the last stage has neither sources nor tools to build with.
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r build.txt \
    && python -m venv --without-pip /opt/ngi \
    && /opt/build/bin/pip --python /opt/ngi/bin/python install --no-cache-dir --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE pytest_ngi_gevent.py ./
COPY ngi_gevent ngi_gevent
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/pip --python /opt/ngi/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && /opt/build/bin/pip --python /opt/ngi/bin/python list --format=freeze > /opt/ngi/packages.txt
COPY examples/echo_server.py examples/container/gunicorn.conf.py /opt/ngi/

FROM ${BASE_IMAGE}
COPY --from=build /opt/ngi /opt/ngi
ENV PATH=/opt/ngi/bin:$PATH
WORKDIR /opt/ngi
USER 10001:10001
EXPOSE 8000 8001
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["python", "-c", "\
import urllib.request; \
urllib.request.urlopen('http://127.0.0.1:8001/alive', timeout=3)"]
# The kernel drops a signal that has its default effect in process 1, unless the signal is blocked.  So env blocks the
# signals that stop the server, until the server handles them: none is lost while Python starts.
ENTRYPOINT ["/usr/bin/env", "--block-signal=TERM,INT"]
# The close timeout is shorter than the 10 seconds after which engines kill a container that they stop.  Untrusted clients
# reach this server, and those that send nothing do not keep their connections.
CMD ["python", "echo_server.py", "--bind", "0.0.0.0:8000", "--health", "0.0.0.0:8001", \
     "--close-timeout", "8", "--idle-timeout", "300"]
