// Settings of Node's cluster: T40, T41, T42, T57, T58, T60.
'use strict';

const { execFileSync, spawnSync } = require('node:child_process');
const { cluster, event, pause, run, serve } = require('./rig.js');

const message = (worker) => event(worker, 'message').then(([value]) => value);

const scenarios = {
  T40: {
    async primary() {
      process.env.X = 'old';
      const value = await message(cluster.fork({ X: 'new', Y: '1' }));
      const holds = value.join() === 'new,1,false,true' && process.env.X === 'old';
      return [holds, `X=${value[0]} Y=${value[1]} in the worker, X=${process.env.X} in the primary; its subprocess is ${value[3] ? 'a primary' : 'a worker'}`];
    },
    worker() {
      const code = "console.log(require('cluster').isPrimary)";
      const sub = execFileSync(process.execPath, ['-e', code]).toString().trim() === 'true';
      process.send([process.env.X, process.env.Y, 'NODE_UNIQUE_ID' in process.env, sub]);
    },
  },
  T41: {
    async primary() {
      const empty = Object.keys(cluster.settings).length === 0;
      const emitted = [];
      cluster.on('setup', (settings) => emitted.push(settings.args.join()));
      cluster.setupPrimary({ args: ['one'] });
      const synchronous = emitted.length;
      cluster.setupPrimary({ silent: true });
      await pause(20);
      const holds = empty && synchronous === 0 && emitted.join() === 'one,one' && cluster.settings.silent === true;
      return [holds, `empty at first ${empty}; setup events ${emitted.length}, asynchronous; args kept by the second call: ${emitted[1]}`];
    },
  },
  T42: {
    async primary() {
      cluster.setupPrimary({ args: [...process.argv.slice(2), '--flag'] });
      const first = await message(cluster.fork());
      cluster.setupPrimary({ cwd: '/', silent: true, exec: __filename });
      const worker = cluster.fork();
      let out = '';
      worker.process.stdout.on('data', (data) => (out += data));
      const second = await message(worker);
      await pause(50);
      const holds = first[0] === '--flag' && first[1] !== '/' && second[1] === '/' && out === 'hello\n';
      return [holds, `args arrive; cwd of later workers is ${second[1]}; their stdout ${out === 'hello\n' ? 'can be read in the primary' : 'is lost'}`];
    },
    worker() {
      if (process.cwd() === '/') process.stdout.write('hello\n');
      process.send([process.argv.at(-1), process.cwd()]);
    },
  },
  T57: {
    async primary() {
      let refused = '';
      cluster.setupPrimary({ execArgv: ['--inspect=0'], inspectPort: 70000, silent: true });
      try {
        cluster.fork();
      } catch (error) {
        refused = error.code;
      }
      return [refused === 'ERR_SOCKET_BAD_PORT', `inspectPort 70000: ${refused}; a port that is taken kills the worker (its known_issues test)`];
    },
  },
  T58: {
    async primary() {
      const code = `
        const cluster = require('cluster');
        if (cluster.isPrimary) {
          process.on('uncaughtException', () => process.exit(42));
          cluster.fork().on('online', () => { throw new Error(); });
        } else setInterval(() => {}, 1000);`;
      const file = require('node:path').join(require('node:os').tmpdir(), `zn-${process.pid}.js`);
      require('node:fs').writeFileSync(file, code);
      const { status } = spawnSync(process.execPath, [file], { timeout: 5000 });
      require('node:fs').rmSync(file);
      return [status === 42, `the program's hook decides: exit code ${status}`];
    },
  },
  T60: {
    async primary() {
      cluster.setupPrimary({ execArgv: ['--require', require.resolve('./rig.js')] });
      const pids = await Promise.all([cluster.fork(), cluster.fork()].map(message));
      const times = new Set(pids).size;
      return [false, `a preloaded module is loaded again in each worker (${times} times by 2 workers): every worker is a new process image, nothing is shared`];
    },
    worker: () => process.send(process.pid),
  },
};
run(scenarios);
