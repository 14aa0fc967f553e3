// Messages on Node's cluster: T43-T51.
'use strict';

const { cluster, event, listening, pause, run, serve, until } = require('./rig.js');

// Ask a worker to send `count` messages of `bytes` and to leave; resolves with how many were there at its exit.
async function arrived(count, bytes, leave) {
  const worker = cluster.fork({ COUNT: count, BYTES: bytes, LEAVE: leave });
  let number = 0;
  worker.on('message', () => number++);
  await event(worker, 'exit');
  const atExit = number;
  await pause(100);
  return atExit === number ? number : `${number} (${number - atExit} of them after 'exit')`;
}

function sendAndLeave() {
  const text = 'x'.repeat(Number(process.env.BYTES));
  for (let i = 0; i < Number(process.env.COUNT); i++) process.send(text);
  if (process.env.LEAVE === 'exit') process.exit(0);
  if (process.env.LEAVE === 'SIGKILL') process.kill(process.pid, 'SIGKILL');
  cluster.worker.disconnect();
}

const echo = () => process.on('message', (message) => process.send(message));

async function roundTrip(worker, value) {
  const answer = event(worker, 'message', 5000);
  worker.send(value);
  return (await answer)?.[0];
}

const scenarios = {
  T43: {
    async primary() {
      const worker = cluster.fork();
      const seen = [];
      worker.on('message', () => seen.push('worker'));
      cluster.on('message', () => seen.push('cluster'));
      const answer = await roundTrip(worker, { a: [1, 'é'] });
      await pause(50);
      return [JSON.stringify(answer) === '{"a":[1,"é"]}' && seen.sort().join() === 'cluster,worker', `echo is equal; heard once by the worker's listener and once by the cluster's`];
    },
    worker: echo,
  },
  T44: {
    async primary() {
      const worker = cluster.fork();
      const back = [];
      worker.on('message', (value) => back.push(value));
      for (let i = 0; i < 1000; i++) worker.send(i);
      await until(() => back.length === 1000, 5000);
      const ordered = back.every((value, index) => value === index);
      return [back.length === 1000 && ordered, `${back.length} of 1000 early messages arrive, ${ordered ? 'in order' : 'out of order'}`];
    },
    worker: echo,
  },
  T45: {
    async primary() {
      const worker = cluster.fork();
      const values = [null, 'é\u0000', 2 ** 60, new Date(0), { a: [{}] }, Buffer.from('ab'), 'x'.repeat(800004), 'x'.repeat(32 << 20)];
      const names = ['null', 'text', '2**60', 'a date', 'nested', 'bytes', '800 kB', '32 MiB'];
      const different = [];
      for (const [index, value] of values.entries()) {
        const back = await roundTrip(worker, value);
        if (JSON.stringify(back) !== JSON.stringify(value) || typeof back !== typeof value || back?.constructor !== value?.constructor) different.push(names[index]);
      }
      return [different.length === 0, `equal after a round trip, but for: ${different.join(', ') || 'none'} (serialization 'json', the default)`];
    },
    worker: echo,
  },
  T46: {
    async primary() {
      const [worker] = await listening(1);
      let confirmed;
      worker.process.kill('SIGSTOP');
      const returned = worker.send('x', (error) => (confirmed = error));
      await pause(100);
      const early = confirmed === null;
      worker.process.kill('SIGKILL');
      await event(worker, 'exit');
      let error = '';
      process.once('uncaughtException', (raised) => (error = raised.code));
      const toDead = worker.send('x');
      await pause(50);
      return [false, `returns ${returned}; the callback comes when it is written, ${early ? 'also for a stopped worker' : 'not received'}; to a dead worker: ${toDead}, and the primary crashes (${error})`];
    },
  },
  T47: {
    async primary() {
      const worker = cluster.fork();
      const back = [];
      worker.on('message', (value) => back.push(value));
      for (const value of [{ cmd: 'NODE_CLUSTER', ack: -1 }, { cmd: 'NODE_x' }, '', 'last']) worker.send(value);
      await until(() => back.includes('last'), 3000);
      return [back.length === 4, `${back.length} of 4 arrive: what begins with NODE_ is taken for an order and swallowed`];
    },
    worker: echo,
  },
  T48: {
    async primary() {
      const worker = cluster.fork();
      let heard = 0;
      process.on('uncaughtException', () => {});
      worker.on('message', () => {
        heard++;
        if (heard === 1) throw new Error('one');
      });
      for (let i = 0; i < 10; i++) worker.send(i);
      await until(() => heard === 10, 3000);
      return [heard === 10, `${heard} of 10 are heard (if the program survives its uncaught exception)`];
    },
    worker: echo,
  },
  T49: {
    async primary() {
      const small = await arrived(1000, 20, 'exit');
      const middle = await arrived(200, 64 << 10, 'exit');
      const large = await arrived(20, 1 << 20, 'exit');
      const orderly = await arrived(1000, 20, 'disconnect');
      return [false, `exit: ${small} of 1000, ${middle} of 200 x 64 KiB, ${large} of 20 x 1 MiB (another number each time); disconnect: ${orderly} of 1000`];
    },
    worker: sendAndLeave,
  },
  T50: {
    async primary() {
      const [worker] = await listening(1);
      let said;
      worker.on('message', (value) => (said = value));
      for (let i = 0; i < 50; i++) worker.send('x'.repeat(64 << 10));
      worker.disconnect();
      await event(worker, 'exit');
      return [said === 50, `the worker got ${said} of 50 before its disconnect`];
    },
    worker() {
      let got = 0;
      serve();
      process.on('message', () => process.send(++got));
    },
  },
  T51: {
    async primary() {
      const worker = cluster.fork({ COUNT: 1000, BYTES: 20, LEAVE: 'disconnect' });
      let late = 0;
      let exited = false;
      worker.on('exit', () => (exited = true));
      worker.on('message', () => (late += exited ? 1 : 0));
      await event(worker, 'exit');
      await pause(100);
      return [late === 0, `${late} messages after 'exit' (the documentation gives no guarantee)`];
    },
    worker: sendAndLeave,
  },
};
scenarios.T46b = {
  async primary() {
    const worker = cluster.fork();
    let heard = 0;
    worker.on('message', () => heard++);
    for (let i = 0; i < 10000; i++) worker.send(i);
    const done = await until(() => heard === 10000, 8000);
    return [done, `${heard} of 10000 in both directions`];
  },
  worker() {
    process.on('message', () => {});
    for (let i = 0; i < 10000; i++) process.send(i);
  },
};
run(scenarios);
