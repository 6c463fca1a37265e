// Who am I among how many: the variables of each launcher, their order, their conflicts.
import { describe, expect, it } from "vitest";
import {
  derivedPort,
  detectPlace,
  type Environment,
  type Place,
  parseEndpoint,
} from "../../lib/distributed/environment.js";
import { expandHostList, expandTasksPerNode } from "../../lib/distributed/host_list.js";

const DANCEFLUX = {
  DANCEFLUX_RANK: "3",
  DANCEFLUX_WORLD_SIZE: "4",
  DANCEFLUX_LOCAL_RANK: "1",
  DANCEFLUX_LOCAL_WORLD_SIZE: "2",
  DANCEFLUX_RENDEZVOUS: "[fd00::1]:1234",
  DANCEFLUX_RUN_ID: "a",
  DANCEFLUX_SERVED: "1",
};
const TORCHRUN = {
  RANK: "5",
  WORLD_SIZE: "8",
  LOCAL_RANK: "1",
  LOCAL_WORLD_SIZE: "4",
  MASTER_ADDR: "node0",
  MASTER_PORT: "29501",
};
const SLURM = {
  SLURM_PROCID: "6",
  SLURM_NTASKS: "7",
  SLURM_LOCALID: "2",
  SLURM_NODEID: "1",
  SLURM_STEP_ID: "0",
  SLURM_JOB_ID: "77",
  SLURM_STEP_NODELIST: "gpu[08-10]",
  SLURM_STEP_TASKS_PER_NODE: "4,3",
};
const OPEN_MPI = {
  OMPI_COMM_WORLD_RANK: "1",
  OMPI_COMM_WORLD_SIZE: "2",
  OMPI_COMM_WORLD_LOCAL_RANK: "1",
  OMPI_COMM_WORLD_LOCAL_SIZE: "2",
  PMIX_NAMESPACE: "4711",
};
const KUBERNETES = { JOB_COMPLETION_INDEX: "2", WORLD_SIZE: "3", MASTER_ADDR: "train-0.train" };

const TABLE: [string, Environment, Partial<Place>][] = [
  [
    "nothing",
    {},
    { source: "alone", rank: 0, size: 1, host: "127.0.0.1", port: 29500, run: "default", served: false },
  ],
  [
    "danceflux launch",
    DANCEFLUX,
    { rank: 3, size: 4, localRank: 1, localSize: 2, host: "fd00::1", port: 1234, run: "a", served: true },
  ],
  [
    "torchrun",
    TORCHRUN,
    {
      rank: 5,
      size: 8,
      localRank: 1,
      localSize: 4,
      host: "node0",
      port: 29501,
      run: "default",
      served: false,
    },
  ],
  [
    "torchrun",
    {
      ...TORCHRUN,
      TORCHELASTIC_RUN_ID: "x",
      TORCHELASTIC_RESTART_COUNT: "2",
      TORCHELASTIC_USE_AGENT_STORE: "True",
    },
    { rank: 5, size: 8, port: 29502, run: "torchrun-x-2" },
  ],
  [
    "Slurm",
    SLURM,
    {
      rank: 6,
      size: 7,
      localRank: 2,
      localSize: 3,
      host: "gpu08",
      port: derivedPort("slurm 77.0"),
      run: "slurm-77.0",
    },
  ],
  ["Slurm", { ...SLURM, MASTER_ADDR: "other", MASTER_PORT: "1" }, { host: "other", port: 1 }],
  [
    "Slurm",
    { ...SLURM, SLURM_STEP_NUM_TASKS: "9", SLURM_STEP_TASKS_PER_NODE: undefined, SLURM_NTASKS_PER_NODE: "5" },
    { size: 9, localSize: 5 },
  ],
  ["Slurm", { ...SLURM, SLURM_STEP_TASKS_PER_NODE: undefined }, { localSize: undefined }],
  [
    "Open MPI",
    OPEN_MPI,
    {
      rank: 1,
      size: 2,
      localRank: 1,
      localSize: 2,
      host: "127.0.0.1",
      port: derivedPort("mpi 4711"),
      run: "mpi-4711",
    },
  ],
  [
    "Open MPI",
    {
      ...OPEN_MPI,
      OMPI_COMM_WORLD_LOCAL_SIZE: "1",
      OMPI_COMM_WORLD_LOCAL_RANK: "0",
      MASTER_ADDR: "m",
      MASTER_PORT: "9",
    },
    { host: "m", port: 9 },
  ],
  ["Kubernetes", KUBERNETES, { rank: 2, size: 3, localRank: undefined, host: "train-0.train", port: 29500 }],
];

describe("the place of a process", () => {
  it.each(TABLE)("%s (%#)", (source, env, expected) => {
    expect(detectPlace({}, env)).toMatchObject({ source, conflicts: [], ...expected });
  });

  it("is taken from the first that names it", () => {
    const all = [DANCEFLUX, TORCHRUN, SLURM, OPEN_MPI, KUBERNETES];
    const order = ["danceflux launch", "torchrun", "Slurm", "Open MPI", "Kubernetes"];
    for (const [index, source] of order.entries()) {
      const env = Object.assign({}, ...all.slice(index).reverse());
      if (index > 1) delete env.RANK;
      expect(detectPlace({}, env).source).toBe(source);
    }
  });

  it("is what the options say, field by field", () => {
    const options = { rank: 1, size: 3, host: "h", run: "mine" };
    expect(detectPlace(options, { ...DANCEFLUX, ...TORCHRUN })).toMatchObject({
      source: "options",
      ...options,
      localRank: undefined,
      port: 29501,
      served: false,
      conflicts: [],
    });
    expect(detectPlace({ port: 5, localRank: 0 }, TORCHRUN)).toMatchObject({
      rank: 5,
      port: 5,
      localRank: 0,
    });
  });

  it("comes with what the environment says besides", () => {
    const { WORLD_SIZE: _, ...kubernetes } = KUBERNETES;
    expect(detectPlace({}, { ...TORCHRUN, ...SLURM }).conflicts).toEqual([
      "RANK (torchrun) says rank 5 of 8 and is followed; SLURM_PROCID (Slurm) says rank 6 of 7",
    ]);
    // Started inside a step, torchrun and danceflux rightly count otherwise.
    expect(detectPlace({}, { ...TORCHRUN, ...SLURM, TORCHELASTIC_RUN_ID: "x" }).conflicts).toEqual([]);
    expect(detectPlace({}, { ...DANCEFLUX, ...SLURM }).conflicts).toEqual([]);
    const batch = { SLURM_PROCID: "0", SLURM_NTASKS: "4", SLURM_JOB_ID: "1" };
    expect(detectPlace({}, batch)).toMatchObject({
      source: "alone",
      size: 1,
      conflicts: ["SLURM_NTASKS=4, but this process was not started by srun: this process runs alone"],
    });
    expect(detectPlace({}, kubernetes)).toMatchObject({
      size: 1,
      conflicts: ["JOB_COMPLETION_INDEX=2 without WORLD_SIZE: this process runs alone"],
    });
  });

  const WRONG: [Environment, object, string][] = [
    [{ RANK: "1" }, {}, "WORLD_SIZE: expected to be set because RANK is, got nothing"],
    [{ WORLD_SIZE: "2" }, {}, "RANK: expected to be set because WORLD_SIZE=2 is, got nothing"],
    [{ RANK: "one", WORLD_SIZE: "2" }, {}, 'RANK: expected a whole number from 0, got "one"'],
    [{ RANK: "-1", WORLD_SIZE: "2" }, {}, 'RANK: expected a whole number from 0, got "-1"'],
    [{ RANK: "2", WORLD_SIZE: "2" }, {}, "group: rank: expected a whole number from 0 to 1, got 2"],
    [{ ...TORCHRUN, LOCAL_RANK: "4" }, {}, "group: local rank: expected a whole number from 0 to 3, got 4"],
    [{ ...TORCHRUN, MASTER_PORT: "70000" }, {}, "MASTER_PORT: expected a whole number from 1 to 65535"],
    [{ DANCEFLUX_RANK: "0" }, {}, "DANCEFLUX_WORLD_SIZE: expected to be set because DANCEFLUX_RANK is"],
    [{ ...DANCEFLUX, DANCEFLUX_RENDEZVOUS: "x" }, {}, 'DANCEFLUX_RENDEZVOUS: expected HOST:PORT, got "x"'],
    [{ ...SLURM, SLURM_STEP_NODELIST: "a[1" }, {}, "host list: expected names such as node[01-03], got a[1"],
    [{ ...OPEN_MPI, OMPI_COMM_WORLD_LOCAL_SIZE: "1" }, {}, "MASTER_ADDR: expected the host of rank 0"],
    [{ JOB_COMPLETION_INDEX: "0", WORLD_SIZE: "2" }, {}, "MASTER_ADDR: expected the name of the first pod"],
    [{}, { rank: 1 }, "group: size: expected to be given because rank is, got nothing"],
    [{}, { size: 1 }, "group: rank: expected to be given because size is, got nothing"],
    [{}, { rank: 0, size: 0 }, "group: size: expected a whole number from 1 to 65536, got 0"],
    [{}, { rank: 0.5, size: 2 }, "group: rank: expected a whole number from 0 to 1, got 0.5"],
  ];
  it.each(WRONG)("is refused: %j %j", (env, options, message) => {
    expect(() => detectPlace(options, env)).toThrow(message);
    expect(() => detectPlace(options, env)).toThrow(expect.objectContaining({ code: "ERR_OPTION" }));
  });
});

describe("a host list", () => {
  const LISTS: [string, string[]][] = [
    ["node1", ["node1"]],
    ["a,b.example.org", ["a", "b.example.org"]],
    ["node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]],
    ["r[1-2]-n[09-10]x", ["r1-n09x", "r1-n10x", "r2-n09x", "r2-n10x"]],
    ["n[098-101]", ["n098", "n099", "n100", "n101"]],
  ];
  it.each(LISTS)("%s", (list, hosts) => {
    expect(expandHostList(list)).toEqual(hosts);
  });
  it.each([
    "",
    "a,",
    ",a",
    "a[",
    "a]",
    "a[]",
    "a[1-]",
    "a[3-1]",
    "a[1,]",
    "a[b]",
    "a[0-99999999]",
    "a[0-999][0-999]",
  ])("is refused: %j", (list) => {
    expect(() => expandHostList(list)).toThrow("host list: expected");
  });
  it("counts tasks per node", () => {
    expect(expandTasksPerNode("4(x2),3")).toEqual([4, 4, 3]);
    expect(expandTasksPerNode("4(x")).toBeUndefined();
  });
});

describe("an endpoint", () => {
  it("is a host and a port", () => {
    expect(parseEndpoint("a.b:80", "x")).toEqual({ host: "a.b", port: 80 });
    expect(parseEndpoint("[::1]:80", "x")).toEqual({ host: "::1", port: 80 });
    for (const wrong of ["a", "a:", ":1", "a:0", "a:70000", "::1:5", "a:1:2"])
      expect(() => parseEndpoint(wrong, "--rdzv-endpoint")).toThrow("--rdzv-endpoint: expected HOST:PORT");
  });
});
