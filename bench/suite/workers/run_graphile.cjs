// graphile-worker: `install DSN PURPOSE` or `run DSN PURPOSE`.
const fs = require("fs");
const { run, runMigrations, Logger } = require("graphile-worker");
const [step, connectionString, purpose] = process.argv.slice(2);
const file = fs.openSync(process.env.CALLS, "a");
const every = process.env.RECORD === "every";
let recorded = false;

const noop = async ({ n }) => {
  // Date.now() has a resolution of one millisecond only.
  const now = (performance.timeOrigin + performance.now()) / 1000;
  if (every || !recorded) {
    recorded = true;
    fs.writeSync(file, `${n} ${now}\n`);
  }
};
const batches = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };

(async () => {
  const logger = new Logger(() => () => {});
  if (step === "install") return runMigrations({ connectionString, logger });
  await run({
    connectionString, logger, taskList: { noop },
    preset: { worker: purpose === "throughput" ? { concurrentJobs: 100, maxPoolSize: 10, ...batches }
                                               : { concurrentJobs: 10, maxPoolSize: 10 } },
  });
})();
