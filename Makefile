# Everything a user types. VENV and PYTHON as in launch/install.sh.
VENV ?= .venv
RUN ?= runs/demo
FUZZ_SECONDS ?= 600
SOAK_MINUTES ?= 30
SOAK_JSON ?= runs/soak.json
export VENV

.PHONY: install demo mini-policy test check-cuda gpu-check test-isa test-slow plant-faults test-slurm test-slurm-short test-foreign fuzz soak lint format docs clean

install:
	launch/install.sh

demo: install  ## the whole method on the embedded default
	$(VENV)/bin/medssr run --config configs/demo_cpu.yaml --run-dir $(RUN)

mini-policy: install  ## train a small policy from scratch on text made from HPO (docs/evidence.md); up to 3 hours on 2 cores
	$(VENV)/bin/python -m medssr_dist.mini_policy --work runs/mini_policy

test: lint  ## lint, unit tests, and integration tests on the real stack with a tiny model
	$(VENV)/bin/python -m pytest -q -m "not slow and not slurm and not gpu"

test-isa: install  ## the kernels, and how exact a training step is, on older instructions of this CPU; minutes
	tests/older_instructions.sh

test-slow: install  ## minutes to tens of minutes: learning, kill -9 in every step, real data
	$(VENV)/bin/python -m pytest -q -m "slow and not slurm"

plant-faults: install  ## the test that the method learns, then again with each of four faults, with which it must fail; an hour
	MEDSSR_LEARN_FOLDER=runs/learn $(VENV)/bin/python -m pytest -q -m slow tests/bench/test_method_learns.py
	$(VENV)/bin/python tests/planted_faults.py --sound runs/learn --json runs/planted_faults.json

test-slurm: install  ## a real Slurm of two nodes on this machine: every fault, preemption in every step; an hour
	tests/slurm_packages.sh
	$(VENV)/bin/python -m pytest -q -m "slurm"

test-slurm-short: install  ## one and two nodes, one requeue, a failing preflight, a planted key; minutes
	tests/slurm_packages.sh
	$(VENV)/bin/python -m pytest -q -m "slurm and not slow"

test-foreign: install  ## servers that others have written: LiteLLM's proxy, llama-cpp-python (compiled), vLLM; minutes
	python3 -m venv $(VENV)-foreign
	$(VENV)-foreign/bin/python -m pip install --quiet 'litellm[proxy]'
	-$(VENV)-foreign/bin/python -m pip install --quiet 'llama-cpp-python[server]'
	MEDSSR_FOREIGN_PYTHON=$(VENV)-foreign/bin/python $(VENV)/bin/python -m pytest -q -m slow tests/synthesis/test_foreign_servers.py

fuzz: install  ## feed every reader of files and replies with damaged input, 10 minutes each; FUZZ_SECONDS is the time
	$(VENV)/bin/python tests/fuzz_readers.py --seconds $(FUZZ_SECONDS)

soak: install  ## vote and train on a tiny model for SOAK_MINUTES under kills, garbage on all ports and a full disk; root
	$(VENV)/bin/python tests/soak.py --minutes $(SOAK_MINUTES) --json $(SOAK_JSON)

check-cuda:  ## install the CUDA set into .venv-cuda and import every module as on a GPU; 11 GB, no GPU needed
	tests/check_cuda.sh

gpu-check:  ## on a node with a GPU: kernels, attention, an update and a small whole run; a quarter of an hour
	$(VENV)/bin/medssr doctor --gpu-check --config demo_cpu

lint: install  ## check style, format and types; changes nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	tests/types.sh

format: install  ## format all files and fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs:  ## build the pages of docs/ as a site into runs/site; a warning is an error
	python3 -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet -r requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-foreign runs
