# A site's images. No pip, no apt; no process stays root.
#
#   docker build -f deploy/client.Dockerfile -t dpfpl-client .                        agent and SuperNode, two users
#   docker build -f deploy/client.Dockerfile --target agent -t dpfpl-agent .          the agent alone
#   docker build -f deploy/client.Dockerfile --target supernode -t dpfpl-supernode .  the SuperNode alone; no torch
#
# BASE       the Python image to build on and run on
# TORCH      cpu or gpu. The default takes the CPU build of torch from TORCH_INDEX, PyTorch's public index of it, and
#            refuses one with GPU libraries, gigabytes that few sites use. gpu takes the package index's own build.
# PIP_ARGS   extra arguments for pip; wheels that lie in deploy/wheels (make wheels) are used first, so a machine without
#            a package index builds with --build-arg PIP_ARGS=--no-index
# VERSION, REVISION, CREATED   for the image's labels
# Model folders in deploy/models come along as /models/NAME; or mount one there.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build-base
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_FIND_LINKS=/wheels
WORKDIR /src
COPY constraints.txt deploy/wheel[s] /wheels/
COPY deploy/container/requirements.py ./
COPY common/pyproject.toml common/
COPY client/pyproject.toml client/
RUN python3 -m venv --without-pip /opt/dpfpl \
 && python3 requirements.py common client > needs.txt \
 && python3 requirements.py build > build.txt \
 && python3 -m pip install -q $PIP_ARGS -c /wheels/constraints.txt -r build.txt \
 && python3 -m pip --python /opt/dpfpl/bin/python install -q $PIP_ARGS -c /wheels/constraints.txt -r needs.txt

FROM build-base AS own
COPY common common
COPY client client
RUN python3 -m pip wheel -q --no-deps --no-build-isolation -w own ./common ./client

FROM build-base AS build-supernode
COPY --from=own /src/own own
COPY deploy/container deploy/container
RUN python3 -m pip --python /opt/dpfpl/bin/python install -q --no-deps own/*.whl \
 && sh deploy/container/slim.sh /opt/dpfpl && cp -r deploy/container /opt/dpfpl/container \
 && python3 deploy/container/sbom.py dpfpl-supernode /opt/dpfpl/lib/python3*/site-packages > /opt/dpfpl/sbom.json

FROM build-base AS build-agent-base
ARG PIP_ARGS=""
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 requirements.py "client[agent,dicom]" > needs.txt \
 && if [ "$TORCH" = cpu ]; then python3 -m pip --python /opt/dpfpl/bin/python install -q $PIP_ARGS --no-deps \
    --extra-index-url "$TORCH_INDEX" -c /wheels/constraints.txt torch; fi \
 && python3 -m pip --python /opt/dpfpl/bin/python install -q $PIP_ARGS -c /wheels/constraints.txt -r needs.txt \
 && /opt/dpfpl/bin/python -c "import sys, torch; gpu = torch.version.cuda is not None; \
sys.exit('torch is a %s build: see TORCH and TORCH_INDEX at the head of deploy/client.Dockerfile' % ('GPU' if gpu else 'CPU') \
if gpu != ('$TORCH' == 'gpu') else 0)"

FROM build-agent-base AS build-agent
COPY --from=own /src/own own
COPY models models
COPY deploy/container deploy/container
RUN python3 -m pip wheel -q --no-deps --no-build-isolation -w own ./models \
 && python3 -m pip --python /opt/dpfpl/bin/python install -q --no-deps own/*.whl \
 && sh deploy/container/slim.sh /opt/dpfpl && cp -r deploy/container /opt/dpfpl/container \
 && python3 deploy/container/sbom.py dpfpl-client /opt/dpfpl/lib/python3*/site-packages > /opt/dpfpl/sbom.json

FROM ${BASE} AS root
COPY deploy/container/strip.sh LICENSE deploy/model[s] /models/
RUN mv /models/strip.sh /tmp/ && mv /models/LICENSE /opt/ \
 && echo "agent:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "agent:x:10001:" >> /etc/group \
 && echo "node:x:10002:10002::/run/node:/usr/sbin/nologin" >> /etc/passwd && echo "node:x:10002:" >> /etc/group \
 && echo "private:x:10003:" >> /etc/group \
 && install -d -o 0 -g 10003 -m 0710 /private && install -d -m 0755 /private/site /private/data \
 && install -d -m 1777 /private/registry \
 && install -d -o 10002 -g 10002 -m 0700 /run/node && install -d -m 1777 /link \
 && sh /tmp/strip.sh

FROM scratch AS common
COPY --from=root / /
ENV PATH=/opt/dpfpl/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    DPFPL_REGISTRY=/private/registry/agent HOME=/tmp HF_HOME=/tmp/hf HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

# The SuperNode alone. Runs as the agent's user (another container, so neither sees the other's files or processes):
# the two share nothing but the link folder with the agent's socket and token.
FROM common AS supernode
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="dpfpl-supernode" \
      org.opencontainers.image.description="DP-FPL: a site's SuperNode, without its data" \
      org.opencontainers.image.version="$VERSION" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-supernode /opt/dpfpl /opt/dpfpl
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["python3", "-I", "/opt/dpfpl/container/health.py", "node", "-"]
ENTRYPOINT ["python3", "/opt/dpfpl/container/supernode.py", "/run/node", "/link/agent"]

# The agent alone; needs no network at all.
FROM common AS agent
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="dpfpl-agent" \
      org.opencontainers.image.description="DP-FPL: a site's agent, which holds its data" \
      org.opencontainers.image.version="$VERSION" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-agent /opt/dpfpl /opt/dpfpl
USER 10001:10003
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python3", "-I", "/opt/dpfpl/container/health.py", "agent", "unix:/link/agent/agent.sock"]
ENTRYPOINT ["python3", "/opt/dpfpl/container/agent.py", "/private/site", "/link/agent"]

# What a site starts. Root only until client.py has forked; needs cap_add SETUID and SETGID and nothing else.
FROM common AS client
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="dpfpl-client" \
      org.opencontainers.image.description="DP-FPL: a site's agent and SuperNode" \
      org.opencontainers.image.version="$VERSION" org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-agent /opt/dpfpl /opt/dpfpl
COPY deploy/container/site.sh /opt/dpfpl/bin/site
USER 0:0
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python3", "-I", "/opt/dpfpl/container/health.py", "agent", "127.0.0.1:7070", "node", "-"]
ENTRYPOINT ["python3", "/opt/dpfpl/container/client.py"]
