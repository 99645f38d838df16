# The operator's image: SuperLink, ServerApp and dpfpl-server. No torch, no pip, no apt, no root.
#
#   docker build -f deploy/server.Dockerfile -t dpfpl-server .
#
# BASE       the Python image to build on and run on
# PIP_ARGS   extra arguments for pip; wheels that lie in deploy/wheels are used first (make wheels), so a machine
#            without a package index builds with --build-arg PIP_ARGS=--no-index
# VERSION, REVISION, CREATED   for the image's labels
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_FIND_LINKS=/wheels
WORKDIR /src
COPY constraints.txt deploy/wheel[s] /wheels/
COPY deploy/container/requirements.py ./
COPY common/pyproject.toml common/
COPY server/pyproject.toml server/
RUN python3 -m venv --without-pip /opt/dpfpl \
 && python3 requirements.py common server > needs.txt \
 && python3 requirements.py build > build.txt \
 && python3 -m pip install -q $PIP_ARGS -c /wheels/constraints.txt -r build.txt \
 && python3 -m pip --python /opt/dpfpl/bin/python install -q $PIP_ARGS -c /wheels/constraints.txt -r needs.txt
COPY common common
COPY server server
RUN python3 -m pip wheel -q --no-deps --no-build-isolation -w own ./common ./server \
 && python3 -m pip --python /opt/dpfpl/bin/python install -q --no-deps own/*.whl
COPY deploy/container deploy/container
RUN sh deploy/container/slim.sh /opt/dpfpl && cp -r deploy/container /opt/dpfpl/container \
 && python3 deploy/container/sbom.py dpfpl-server /opt/dpfpl/lib/python3*/site-packages > /opt/dpfpl/sbom.json

FROM ${BASE} AS root
COPY deploy/container/strip.sh /tmp/strip.sh
RUN echo "dpfpl:x:10001:10001::/var/lib/dpfpl:/usr/sbin/nologin" >> /etc/passwd \
 && echo "dpfpl:x:10001:" >> /etc/group \
 && install -d -o 10001 -g 10001 -m 0755 /var/lib/dpfpl \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/dpfpl/server /var/lib/dpfpl/runs \
 && install -d -o 10001 -g 10001 -m 0755 /kits \
 && sh /tmp/strip.sh

FROM scratch
COPY --from=root / /
COPY --from=build /opt/dpfpl /opt/dpfpl
COPY LICENSE /opt/dpfpl/
ENV PATH=/opt/dpfpl/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="dpfpl-server" \
      org.opencontainers.image.description="DP-FPL: SuperLink, ServerApp and dpfpl-server" \
      org.opencontainers.image.version="$VERSION" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /var/lib/dpfpl
USER 10001:10001
EXPOSE 9092
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["python3", "-I", "/opt/dpfpl/container/health.py", "server", "/var/lib/dpfpl/server"]
ENTRYPOINT ["dpfpl-server"]
CMD ["start"]
