// What goes wrong on Node's cluster: T52-T55.
'use strict';

const net = require('node:net');
const { cluster, connect, event, get, listening, pause, run, serve } = require('./rig.js');

const scenarios = {
  T52: {
    async primary() {
      const workers = await listening(3);
      workers[0].process.kill('SIGSTOP');
      let answered = 0;
      let stuck;
      for (let i = 0; i < 30; i++) {
        const socket = await connect(workers[0].port);
        socket.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
        if (await event(socket, 'data', 1000)) answered++;
        else stuck = socket;
      }
      let ended = false;
      stuck?.on('close', () => (ended = true));
      workers[0].process.kill('SIGKILL');
      await event(workers[0], 'exit');
      await pause(2000);
      const fate = stuck && !ended ? 'its client hears nothing, not even when the worker has been killed' : 'its client was cut off';
      return [answered === 30, `${answered} of 30 answered; ${fate}; nobody notices that it hangs`];
    },
  },
  T53: {
    async primary() {
      const [worker] = await listening(1);
      cluster.on('exit', () => cluster.fork({ PORT: worker.port }));
      let refused = 0;
      let all = 0;
      const timer = setInterval(() => {
        all++;
        const socket = net.connect(worker.port, '127.0.0.1', () => socket.destroy());
        socket.on('error', (error) => (refused += error.code === 'ECONNREFUSED' ? 1 : 0));
      }, 5);
      await pause(200);
      worker.process.kill('SIGKILL');
      await event(cluster, 'listening');
      await pause(200);
      clearInterval(timer);
      return [refused === 0, `${refused} of ${all} connections, one every 5 ms, refused while the only worker was replaced`];
    },
    worker: () => serve((request, response) => response.end('1'), Number(process.env.PORT ?? 0)),
  },
  T54: {
    async primary() {
      let total = 0;
      cluster.on('message', () => total++);
      cluster.on('exit', () => cluster.fork());
      const workers = await listening(4, {});
      const port = workers[0].port;
      let answered = 0;
      let going = true;
      const clients = Array.from({ length: 8 }, async () => {
        while (going) if ((await get(port)) === 'counted') answered++;
      });
      for (let round = 0; round < 5; round++) {
        await pause(150);
        const list = Object.values(cluster.workers);
        list[round % list.length].process.kill('SIGKILL');
      }
      await pause(200);
      going = false;
      await Promise.all(clients);
      await pause(200);
      return [false, `5 workers killed under load: ${Math.max(0, answered - total)} of ${answered} answered requests were not counted in this run; the total is in the primary's memory and dies with it`];
    },
    worker: () =>
      serve((request, response) => {
        process.send('increment');
        response.end('counted');
      }, 0),
  },
  T55: {
    async primary() {
      let forks = 0;
      cluster.setupPrimary({ silent: true });
      cluster.on('exit', () => {
        forks++;
        cluster.fork();
      });
      cluster.fork();
      await pause(1500);
      cluster.removeAllListeners('exit');
      return [false, `on('exit', fork), as the documentation shows it, starts ${Math.round(forks / 1.5)} processes a second, without end`];
    },
    worker() {
      throw new Error('at import');
    },
  },
};
run(scenarios);
