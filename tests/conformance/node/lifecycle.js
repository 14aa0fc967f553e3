// The life of workers on Node's cluster: T01, T02, T05-T26.
'use strict';

const { spawn } = require('node:child_process');
const { cluster, connect, event, get, isAlive, listening, pause, run, serve, until } = require('./rig.js');

const spin = () => {
  for (;;);
};
// Worker side: do what the environment says, as soon as we listen.
const doing = (actions) => () => {
  const server = serve();
  const action = actions[process.env.DO];
  if (action) server.on('listening', () => setTimeout(action, 50)); // its own 'listening' message goes out first
};

// A primary of its own, which ends in some way; resolves with the pids of its workers.
function inner(how, workers) {
  const child = spawn(process.execPath, [__filename, process.argv[2], 'inner'], { env: { ...process.env, HOW: how, COUNT: workers }, stdio: ['ignore', 'pipe', 'ignore'] });
  return new Promise((resolve) => {
    let text = '';
    child.stdout.on('data', (data) => {
      text += data;
      if (text.includes('\n')) resolve({ child, pids: JSON.parse(text) });
    });
  });
}

// The program that `inner` runs: as primary it starts workers, says their pids and ends.
async function innerProgram() {
  if (cluster.isWorker) {
    serve();
    if (process.env.BLOCKED) setTimeout(spin, 100);
    return;
  }
  cluster.setupPrimary({ args: process.argv.slice(2) });
  const workers = await listening(Number(process.env.COUNT) - 1);
  workers.push(...(await listening(1, process.env.HOW === 'killed' ? { BLOCKED: '1' } : {})));
  await pause(300);
  process.stdout.write(JSON.stringify(workers.map((worker) => worker.process.pid)) + '\n');
  if (process.env.HOW === 'exit') setTimeout(() => process.exit(0), 50);
  if (process.env.HOW === 'throw') setTimeout(() => { throw new Error('primary'); }, 50);
}

async function primaryEnds(how) {
  const { child, pids } = await inner(how, 2);
  if (how === 'killed') child.kill('SIGKILL');
  const [code] = await event(child, 'exit');
  const gone = await until(() => !pids.some(isAlive), 2000);
  const left = pids.filter(isAlive);
  left.forEach((pid) => process.kill(pid, 'SIGKILL'));
  return [gone, `exit code ${code}; ${left.length} of ${pids.length} workers alive 2 s later`];
}

async function flagAfter(action, primarySide) {
  const [worker] = await listening(1, { DO: action });
  if (primarySide) primarySide(worker);
  const [code, signal] = await event(worker, 'exit');
  return `${action} ${worker.exitedAfterDisconnect} (${signal ?? code})`;
}

const scenarios = {
  T01: {
    async primary() {
      const seen = [];
      const worker = cluster.fork();
      for (const name of ['fork', 'online', 'listening', 'disconnect', 'exit']) {
        cluster.on(name, (other) => seen.push(`${other === worker ? '' : '?'}${name}`));
        worker.on(name, () => seen.push(`worker ${name}`));
      }
      cluster.on('listening', () => worker.process.kill());
      await event(worker, 'exit');
      await pause(50);
      const wanted = 'fork, worker online, online, worker listening, listening, worker disconnect, disconnect, worker exit, exit';
      return [seen.join(', ') === wanted, seen.join(', ')];
    },
  },
  T02: {
    async primary() {
      const workers = await listening(3);
      workers[1].process.kill('SIGKILL');
      await event(workers[1], 'exit');
      const next = cluster.fork();
      const ids = Object.keys(cluster.workers).join(', ');
      return [next.id === 4 && ids === '1, 3, 4', `ids ${ids}; a dead worker is not replaced unless the program forks`];
    },
  },
  T05: {
    async primary() {
      const [worker, other] = await listening(2);
      let failed = 0;
      let going = true;
      const client = (async () => {
        while (going) failed += /^\d$/.test(await get(other.port)) ? 0 : 1;
      })();
      const returned = worker.disconnect() === worker;
      const [code, signal] = await event(worker, 'exit');
      going = false;
      await client;
      const holds = returned && code === 0 && signal === null && worker.exitedAfterDisconnect && failed === 0;
      return [holds, `exit code ${code}, flag ${worker.exitedAfterDisconnect}, ${failed} failed requests`];
    },
  },
  T06: {
    async primary() {
      const [worker] = await listening(1, { DO: 'leave' });
      const [code] = await event(worker, 'exit');
      return [code === 0 && worker.exitedAfterDisconnect === true, `exit code ${code}, flag ${worker.exitedAfterDisconnect}`];
    },
    worker: doing({
      leave() {
        let told = false;
        cluster.worker.on('disconnect', () => (told = true));
        cluster.worker.disconnect();
        if (told) process.exit(9);
      },
    }),
  },
  T07: {
    async primary() {
      const [worker] = await listening(1, { DO: 'exit' });
      const [code, signal] = await event(worker, 'exit');
      return [code === 42 && signal === null && worker.exitedAfterDisconnect === false, `(${code}, ${signal}), flag ${worker.exitedAfterDisconnect}`];
    },
    worker: doing({ exit: () => process.exit(42) }),
  },
  T08: {
    async primary() {
      const [worker] = await listening(1);
      worker.kill('SIGKILL');
      const [code, signal] = await event(worker, 'exit');
      const left = Object.keys(cluster.workers).length;
      return [code === null && signal === 'SIGKILL' && left === 0, `(${code}, ${signal}), ${left} in workers`];
    },
  },
  T09: {
    async primary() {
      const [worker] = await listening(1, { DO: 'spin' });
      await pause(150);
      worker.kill();
      const ended = await event(worker, 'exit', 3000);
      return [Boolean(ended), ended ? `ended by ${ended[1]}: no handler stands in Node's way` : 'still running after 3 s'];
    },
    worker: doing({ spin }),
  },
  T10: {
    async primary() {
      const worker = cluster.fork();
      const flags = [worker.isConnected(), worker.isDead()];
      await event(worker, 'listening');
      worker.on('disconnect', () => flags.push(worker.isConnected()));
      worker.on('exit', () => flags.push(worker.isDead()));
      worker.disconnect();
      await event(worker, 'exit');
      return [flags.join() === 'true,false,false,true', `connected at fork ${flags[0]}, in disconnect ${flags[2]}; dead at fork ${flags[1]}, in exit ${flags[3]}`];
    },
  },
  T11: {
    async primary() {
      const said = [
        await flagAfter('disconnect', (worker) => worker.disconnect()),
        await flagAfter('self-disconnect'),
        await flagAfter('self-kill'),
        await flagAfter('kill', (worker) => worker.kill()),
        await flagAfter('exit'),
        await flagAfter('throw'),
        await flagAfter('SIGKILL', (worker) => worker.process.kill('SIGKILL')),
        await flagAfter('channel cut', (worker) => worker.process.disconnect()),
      ];
      return [true, said.join('; ')];
    },
    worker: doing({
      'self-disconnect': () => cluster.worker.disconnect(),
      'self-kill': () => cluster.worker.kill(),
      exit: () => process.exit(42),
      throw() {
        process.stderr.write = () => true;
        throw new Error('worker');
      },
    }),
  },
  T12: {
    async primary() {
      cluster.setupPrimary({ silent: true });
      const worker = cluster.fork();
      let text = '';
      worker.process.stderr.on('data', (data) => (text += data));
      const [code] = await event(worker, 'exit');
      await pause(50);
      const told = text.includes('on fire') ? 'the traceback' : 'no traceback';
      return [code === 1 && worker.exitedAfterDisconnect === false && text.includes('on fire'), `exit code ${code}, flag ${worker.exitedAfterDisconnect}, ${told} on stderr, without the worker's id`];
    },
    worker() {
      throw new Error('the database is on fire');
    },
  },
  T13: {
    async primary() {
      const [worker] = await listening(1);
      worker.disconnect();
      const [code] = await event(worker, 'exit');
      return [code === 42, `exit code ${code}`];
    },
    worker() {
      serve();
      cluster.worker.on('disconnect', () => process.exit(42));
    },
  },
  T14: {
    async primary() {
      const [worker] = await listening(1);
      worker.disconnect();
      const listed = worker.id in cluster.workers;
      await event(worker, 'exit');
      return [listed, `${listed ? 'listed' : 'gone from workers at once'}, while its process lives (the documentation says otherwise)`];
    },
  },
  T15: {
    async primary() {
      const workers = await listening(3);
      const sockets = [];
      for (let i = 0; i < 3; i++) sockets.push(await connect(workers[0].port));
      sockets[0].write('GET /hold HTTP/1.1\r\nHost: x\r\n\r\n');
      await event(sockets[0], 'data');
      sockets.slice(1).forEach((socket) => socket.destroy());
      const alive = await new Promise((resolve) => cluster.disconnect(() => resolve(workers.filter((worker) => !worker.isDead()).length)));
      return [alive === 0, `the callback came with ${alive} of 3 workers alive`];
    },
    worker: () => serve((request, response) => response.write('begun')),
  },
  T16: {
    async primary() {
      let returned = false;
      const late = await new Promise((resolve) => {
        cluster.disconnect(() => resolve(returned));
        returned = true;
      });
      return [late, late ? 'called, after disconnect() had returned' : 'called before disconnect() returned'];
    },
  },
  T17: {
    async primary() {
      const worker = cluster.fork();
      worker.disconnect();
      const [[code]] = await Promise.all([event(worker, 'exit'), event(worker, 'disconnect')]);
      return [code === 0 && Object.keys(cluster.workers).length === 0, `disconnect and exit, code ${code}`];
    },
  },
  T18: {
    async primary() {
      const workers = await listening(4);
      const exits = workers.map((worker) => event(worker, 'exit', 5000));
      cluster.on('disconnect', () => Object.values(cluster.workers).forEach((other) => other.disconnect()));
      workers.forEach((worker, index) => (index % 2 ? worker.disconnect() : worker.kill()));
      workers.forEach((worker) => worker.disconnect());
      const ends = (await Promise.all(exits)).map((end) => (end ? (end[1] ?? end[0]) : 'never'));
      return [ends.every((end) => end === 0 || end === 'SIGTERM'), `exits: ${ends.join(', ')}; 1 is ERR_IPC_DISCONNECTED in the worker`];
    },
  },
  T19: {
    async primary() {
      const workers = await listening(2);
      const done = new Promise((resolve) => cluster.once('disconnect', () => cluster.disconnect(resolve)));
      workers[0].disconnect();
      await done;
      return [true, 'does not raise'];
    },
  },
  T20: {
    async primary() {
      const workers = await listening(2);
      const body = get(workers[0].port, '/slow');
      await new Promise((resolve) => cluster.once('message', (worker) => resolve(worker.disconnect())));
      const answered = await body;
      return [answered === 'whole', `the client got ${answered === 'whole' ? 'its whole response' : answered}`];
    },
    worker: () =>
      serve((request, response) => {
        process.send('begun');
        setTimeout(() => response.end('whole'), 300);
      }),
  },
  T21: {
    async primary() {
      const [worker] = await listening(1);
      const socket = await connect(worker.port);
      socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
      await event(socket, 'data');
      const started = Date.now();
      worker.disconnect();
      const ended = await event(worker, 'exit', 3000);
      return [Boolean(ended), ended ? `exit after ${Date.now() - started < 1000 ? 'less than 1 s' : 'more than 1 s'}; the idle connection is closed at once, whatever its client is about to write` : 'still running 3 s later'];
    },
  },
  T22: {
    async primary() {
      const [worker] = await listening(1);
      const outside = require('node:net').createServer(() => {}).listen(0, '127.0.0.1');
      await event(outside, 'listening');
      worker.send(outside.address().port);
      await event(outside, 'connection');
      worker.disconnect();
      const ended = await event(worker, 'exit', 3000);
      return [Boolean(ended), ended ? 'it exits' : 'it does not exit as long as that connection lives: there is no time limit'];
    },
    worker() {
      serve();
      process.on('message', (port) => connect(port));
    },
  },
  T23: { primary: () => primaryEnds('exit'), worker: innerProgram },
  T24: { primary: () => primaryEnds('throw'), worker: innerProgram },
  T25: {
    async primary() {
      const [holds, said] = await primaryEnds('killed');
      return [holds, `${said}: one that is blocked does not notice`];
    },
    worker: innerProgram,
  },
  T26: {
    async primary() {
      const [worker] = await listening(1);
      worker.process.disconnect();
      const [code] = await event(worker, 'exit');
      return [code === 0 && worker.exitedAfterDisconnect === false, `the worker exits with code ${code}, flag ${worker.exitedAfterDisconnect}`];
    },
  },
};
run(scenarios);
