# Dreamer-LPM in a container: ./start.sh builds and enters it. By hand:
#   docker build -t dreamer-lpm .                                                                      CPU
#   docker build -t dreamer-lpm:gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .   CUDA 13.0
#
# The base is pinned by its digest. That of another tag: `docker buildx imagetools inspect python:TAG`.
FROM python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c

# The index that torch alone comes from; which versions are allowed stands in pyproject.toml.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=wandb

# The container's user. start.sh gives the caller's numbers, so that files in the mounted folders belong to them.
ARG UID=1000
ARG GID=1000

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    DREAMER_LPM_DATA=/app/data

# --non-unique: on macOS and some servers these numbers are already taken by a system group of Debian.
RUN groupadd --non-unique --gid "${GID}" lpm \
    && useradd --no-log-init --non-unique --uid "${UID}" --gid "${GID}" --create-home --shell /bin/bash lpm \
    && mkdir -p /app/dreamer_lpm \
    && chown -R "${UID}:${GID}" /app

WORKDIR /app

# Only what the installer reads, so that an edit elsewhere keeps these slow layers.
COPY --chown=${UID}:${GID} pyproject.toml README.md LICENSE ./
COPY --chown=${UID}:${GID} dreamer_lpm/__init__.py dreamer_lpm/
RUN python -c 'import tomllib; print(*(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d.startswith("torch")))' > /tmp/torch.txt \
    && pip install --index-url "${TORCH_INDEX}" --requirement /tmp/torch.txt \
    && rm /tmp/torch.txt
# Editable: the package is whatever lies in /app, so the sources below need no further step.
RUN pip install --editable ".[${EXTRAS}]"

COPY --chown=${UID}:${GID} . .
# The mount points belong to the user even where nothing is mounted on them.
RUN mkdir -p runs videos data && chown "${UID}:${GID}" runs videos data

# By number, which every host and scheduler can check to be no root.
USER ${UID}:${GID}
CMD ["bash"]
