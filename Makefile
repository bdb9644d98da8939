# Everything a user types. Each target makes .venv first where it is missing, so `make train` is enough
# on a fresh clone. The targets are thin: the work is in `python -m mbrl.<verb> key=value ...`.

TORCH := torch==2.13.0
PYTHON_VERSIONS := 3.11 3.12 3.13
VENV := .venv
PY := $(VENV)/bin/python

# The variables that each target knows; INSTALLATION's are known to all, since every target may have to install first.
INSTALLATION := PYTHON TORCH_INDEX
KNOWS_train := TASK AGENT SEED PRESET ARGS
KNOWS_resume := TASK AGENT SEED ARGS
KNOWS_eval := TASK AGENT SEED ARGS
KNOWS_sweep := TASK AGENT SEED SEEDS JOBS LAUNCHER SEARCH TRIALS PRESET ARGS
KNOWS_compare := TASKS RUNS NAME ARGS
KNOWS_reproduce := ARGS
KNOWS_data := SOURCE ARGS
KNOWS_pretrain := DATA STAGE ARGS
KNOWS_predict := MODEL DATA ARGS
KNOWS_plan := TASK GOAL MODEL DATA ARGS
KNOWS_study := NAME RUN MODEL DATA ARGS
KNOWS_export := RUN ARGS
KNOWS_bench := TASK AGENT SEED PRESET PEER PEER_PYTHON ARGS
KNOWS_play := TASK RUN MODEL HOST PORT ARGS
KNOWS_watch := TASK RUN MODEL HOST PORT ARGS
KNOWS_verify := RUN ARGS
KNOWS_publish := RUN TO ARGS
KNOWS_doctor := ARGS
KNOWS_tasks := ARGS
KNOWS_docs := ARGS
KNOWS_test := ARGS
TARGETS := help setup train resume eval sweep compare reproduce data pretrain predict study plan export bench play watch verify publish doctor tasks docs test check lint

# --- what was typed, before anything is done ----------------------------------------------------------------------
# A word that no target knows must stop make: `make train task=hammer` would train another task for hours.

GOALS := $(or $(MAKECMDGOALS),help)
KNOWN := $(foreach goal,$(GOALS),$(KNOWS_$(goal)))
TYPED := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))

# For the shell, in quotes of its own.
quote = '$(subst ','\'',$1)'
# The nearest of the names $2 to what was typed, $1, or nothing.
nearest = $(shell python3 -c 'import difflib, sys; names = {name.lower(): name for name in sys.argv[2:]}; \
	print(*[names[name] for name in difflib.get_close_matches(sys.argv[1].lower(), names, 1, 0.65)])' \
	$(call quote,$1) $2 2>/dev/null)

define unknown_target
make $1: there is no such target; $(or $(patsubst %,did you mean make %,$(call nearest,$1,$(TARGETS))),make help lists them)
endef
define unknown_variable
$1=$(value $1): $(or $(patsubst %,write %=$(value $1),$(call nearest,$1,$(KNOWN))),make $(firstword $(GOALS)) knows $(strip \
$(KNOWN) $(INSTALLATION))$(if $(filter ARGS,$(KNOWN)),; any other key is written ARGS="key=value"))
endef
$(foreach goal,$(filter-out $(TARGETS) $(VENV)/%,$(GOALS)),$(error $(call unknown_target,$(goal))))
$(foreach name,$(filter-out $(KNOWN) $(INSTALLATION),$(TYPED)),$(error $(call unknown_variable,$(name))))

# Shells and hosting services have these in the environment for purposes of their own.
$(foreach name,HOST PORT RUN,$(if $(findstring environment,$(origin $(name))),$(eval override undefine $(name))))

# Values are what was typed: make reads no `$` in them, and `given` keeps the shell from reading the rest.
$(foreach name,$(KNOWN) $(INSTALLATION),$(if $(filter-out undefined,$(origin $(name))),\
	$(eval override $(name) := $$(value $(name)))))
define newline


endef
$(foreach name,$(KNOWN) $(INSTALLATION),$(if $(findstring $(newline),$(value $(name))),\
	$(error $(name)= has a line break in it)))
given = $(if $2,$(call quote,$1=$2))
# ARGS alone is made of words, with quotes of its own: each of them, in quotes for the shell.
SPLIT := import shlex, sys; print(shlex.join(shlex.split(sys.argv[1])))
split = $(shell $$(command -v python3 || echo $(PY)) -c '$(SPLIT)' $(call quote,$(ARGS)) 2>/dev/null)
words = $(if $(strip $(ARGS)),$(or $(split),$(error ARGS=$(ARGS): a quote in it has no end)))

# The run that is meant. What is left out keeps its default in configs/config.yaml.
CHOSEN = $(call given,task,$(TASK)) $(call given,agent,$(AGENT)) $(call given,seed,$(SEED))
# The official code to measure beside.
BESIDE = $(call given,peer,$(PEER)) $(call given,peer_python,$(PEER_PYTHON))
SWEEP = $(call given,seed,$(SEEDS)) $(call given,jobs,$(JOBS)) $(call given,launcher,$(LAUNCHER)) $(call given,search,$(SEARCH)) $(call given,trials,$(TRIALS))
PLAYED = $(call given,task,$(TASK)) $(call given,run,$(RUN)) $(call given,model,$(MODEL)) $(call given,host,$(HOST)) $(call given,port,$(PORT))
COMPARISON = $(if $(TASKS),$(call given,task_names,[$(TASKS)])) $(if $(RUNS),$(call given,runs,[$(RUNS)])) $(call given,name,$(NAME))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

.PHONY: help
help:
	@echo "make setup     make .venv with everything in it (the other targets do it by themselves)"
	@echo "make train     train an agent; the same command again continues a run that was cut off"
	@echo "make resume    continue the run of TASK, AGENT and SEED with the config that it was started with"
	@echo "make eval      evaluate the newest checkpoint of the run of TASK, AGENT and SEED"
	@echo "make sweep     train many: TASK and AGENT may be lists (a,b), SEEDS=1-5, JOBS at a time; skips what is finished"
	@echo "make compare   weigh runs against each other and write runs/reports/NAME, to look at and to print"
	@echo "make reproduce the figure of the README from runs/published, and commands.sh, which trains its runs again"
	@echo "make data      record or read video to pre-train on, SOURCE=metaworld|rlds|... (keys: configs/data.yaml)"
	@echo "make pretrain  pre-train a world model on DATA; STAGE=tokenizer|transformer|both (keys: configs/pretrain.yaml)"
	@echo "make predict   predict recorded video with MODEL and DATA, with metrics (keys: configs/predict.yaml)"
	@echo "make study     a table from NAME=fewshot|scaling|efficiency|decoupling|distances, or of a RUN, NAME=ranking"
	@echo "make plan      reach goals of TASK by planning in MODEL, GOAL=expert|offset:25|<image> (docs/planning.md, configs/plan.yaml)"
	@echo "make export    write the episodes of RUN, or its dreams, as a LeRobot dataset (keys: configs/export.yaml)"
	@echo "make bench     measure speed; with PEER and PEER_PYTHON beside the official code (docs/performance.md)"
	@echo "make play      drive a dream of TASK with the simulator beside it, on a page of this machine (docs/play.md)"
	@echo "make watch     the same page, and the policy of RUN drives: robot, its dream, their difference, success counted"
	@echo "make verify    play the last evaluation of RUN again: it must give the same success rate"
	@echo "make publish   keep of RUN what others need of it in runs/published, and push it to the hub as TO=<owner>/<name>"
	@echo "make tasks     list every task by suite, and what the protocols give it"
	@echo "make docs      build docs/ as a site in build/site, to read without a network"
	@echo "make doctor    show versions, device, renderer speed, and which optional weights were found"
	@echo "make test      run the tests            (ARGS=\"tests/test_envs.py -k toy\" for some of them)"
	@echo "make check     lint and the quick tests, in about a minute"
	@echo "make lint      check style and types"
	@echo
	@echo "TASK=coffee-push     a Meta-world task, dm_control/walker-walk, ..., or toy/reach"
	@echo "AGENT=mbpo           mbpo: DrQ-v2 that also learns in an iVideoGPT world model; drqv2: without it; dreamerv3;"
	@echo "                     mpc: no policy, plans in a world model that it learns"
	@echo "SEED=1               of everything random in the run"
	@echo "PRESET=auto          smoke (minutes), small (a laptop), paper (a GPU), auto (small or paper by device)"
	@echo "PEER=DIR             a checkout of thuml/iVideoGPT; PEER_PYTHON: the python of an environment that runs it"
	@echo "RUN=runs/hammer/mbpo/1   the folder of a run, of play, watch, verify, export, publish, study NAME=ranking"
	@echo "MODEL=DIR HOST=127.0.0.1 PORT=8765    of play and watch    (more keys: configs/play.yaml)"
	@echo "SEEDS=1-5 JOBS=2 LAUNCHER=local|slurm                    of a sweep    (more keys: configs/sweep.yaml)"
	@echo "SEARCH=\"drqv2.lr=log(1e-5,1e-3)\" TRIALS=20               of a sweep that looks for good values (docs/tutorial.md)"
	@echo "TASKS=hammer,door-lock RUNS=runs/hammer,x.csv NAME=x     of a comparison (more: configs/compare.yaml)"
	@echo "ARGS=\"key=value ...\" any key of configs/config.yaml; quote what the shell would read:"
	@echo "                     ARGS=\"num_train_frames=2000 'drqv2.stddev_schedule=\\\"linear(1.0,0.1,1000)\\\"'\""
	@echo
	@echo "PYTHON=python3.12    the Python that .venv is made of (one of: $(PYTHON_VERSIONS))"
	@echo "TORCH_INDEX=URL      package index to take $(TORCH) from, for one of its CPU or CUDA builds (its"
	@echo "                     install page lists them); without it the build that pip finds by default."
	@echo "                     Another build later: remove $(VENV) first."

.PHONY: train resume eval sweep compare reproduce data pretrain predict study plan export bench play watch verify publish doctor tasks
train: setup
	$(PY) -m mbrl.train $(CHOSEN) $(call given,preset,$(PRESET)) $(words)

resume: setup
	$(PY) -m mbrl.resume $(CHOSEN) $(words)

eval: setup
	$(PY) -m mbrl.evaluate $(CHOSEN) $(words)

sweep: setup
	$(PY) -m mbrl.sweep $(CHOSEN) $(SWEEP) $(call given,preset,$(PRESET)) $(words)

compare: setup
	$(PY) -m mbrl.compare $(COMPARISON) $(words)

reproduce: setup
	$(PY) -m mbrl.compare 'runs=[runs/published/*/mbpo,runs/published/*/drqv2]' name=proof $(words)
	@echo; cat runs/reports/proof/commands.sh

data: setup
	$(PY) -m mbrl.data $(call given,source,$(SOURCE)) $(words)

pretrain: setup
	$(PY) -m mbrl.pretrain $(call given,data,$(DATA)) $(call given,stage,$(STAGE)) $(words)

bench: setup
	$(PY) -m benchmarks.bench $(CHOSEN) $(call given,preset,$(PRESET)) $(BESIDE) $(words)

predict: setup
	$(PY) -m mbrl.predict $(call given,model,$(MODEL)) $(call given,data,$(DATA)) $(words)

study: setup
	$(PY) -m mbrl.study $(call given,study,$(NAME)) $(call given,run,$(RUN)) $(call given,start_from,$(MODEL)) $(call given,data,$(DATA)) $(words)

plan: setup
	$(PY) -m mbrl.plan $(call given,task,$(TASK)) $(call given,goal,$(GOAL)) $(call given,model,$(MODEL)) $(call given,data,$(DATA)) $(words)

play: setup
	$(PY) -m mbrl.play $(PLAYED) $(words)

watch: setup
	$(PY) -m mbrl.play watch=true $(PLAYED) $(words)

verify: setup
	$(PY) -m mbrl.verify $(call given,run,$(RUN)) $(words)

export: setup
	$(PY) -m mbrl.export $(call given,run,$(RUN)) $(words)

publish: setup
	$(PY) -m mbrl.publish $(call given,run,$(RUN)) $(call given,to,$(TO)) $(words)

doctor: setup
	$(PY) -m mbrl.doctor $(words)

tasks: setup
	$(PY) -m mbrl.tasks $(words)

.PHONY: docs
docs: setup
	$(PY) docs/generate.py $(words)
	$(PY) -m mkdocs build --strict --quiet
	@echo build/site/index.html

.PHONY: test check lint
# Files are dealt out to as many processes as there are cores; their fixtures are made once in each.
test: setup
	$(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(words)

# What breaks most often and takes no run to find out.
QUICK := architecture makefile settings weights_by_name stats metrics replay episodes augmentation adversary data video

check: lint
	$(PY) -m pytest -q $(QUICK:%=tests/test_%.py)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# --- environment -----------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.installed $(VENV)/.gl

# The stamps are written last: an install that was cut off is taken up again by the next make.
# torch comes first and pinned, because requirements.lock must not decide which build (CPU, CUDA) is taken.
# The lock is complete; --no-deps keeps pip from asking for labmaze on Python 3.13, where it has no wheel.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/.python
	$(PY) -m pip install $(if $(TORCH_INDEX),--index-url $(call quote,$(TORCH_INDEX))) $(TORCH)
	$(PY) -m pip install --no-deps --requirement requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# ensurepip is asked for because Debian's python3 lacks it unless python3-venv is installed.
PYTHON_FITS := import sys, ensurepip; \
	sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHON_VERSIONS)".split())

$(VENV)/.python:
	@for python in $(if $(PYTHON),$(call quote,$(PYTHON)),python3 $(PYTHON_VERSIONS:%=python%)); do \
	    if "$$python" -c '$(PYTHON_FITS)' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; \
	        "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "error: found no Python $(PYTHON_VERSIONS) with its venv module"$(if $(PYTHON),$(call quote, as PYTHON=$(PYTHON)))";" \
	    "install one (Debian, Ubuntu: sudo apt-get install python3-venv)" \
	    "or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 2

# A real off-screen frame is the only proof that a GL library works. Without one only the toy world and the
# learners run, so this says what to install and lets the command go on; it is asked again next time.
GL_PACKAGES := libegl1 libgl1-mesa-dri libopengl0
GL_FRAME := $(PY) -c 'from envs.rendering import choose_backend; choose_backend(); import mujoco; \
	mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).render()'

$(VENV)/.gl: | $(VENV)/.installed
	@if why=$$($(GL_FRAME) 2>&1); then touch $@; exit; fi; \
	if [ -z "$$MUJOCO_GL" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "no GL library works here: apt-get install $(GL_PACKAGES)"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends $(GL_PACKAGES) >/dev/null; \
	    if why=$$($(GL_FRAME) 2>&1); then touch $@; exit; fi; \
	fi; \
	echo "warning: the simulators cannot draw here: $$(echo "$$why" | tail -n 1 | sed 's/^[A-Za-z_.]*: //')" >&2; \
	echo "         where a GL library is missing: sudo apt-get install $(GL_PACKAGES)" >&2
