// Listening on Node's cluster: T03, T04, T27-T38.
'use strict';

const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { cluster, connect, event, get, listening, pause, run, serve, until } = require('./rig.js');

// A worker that listens where the environment says, and reports what happened.
function listenThere() {
  const server = http.createServer((request, response) => response.end('served'));
  server.on('error', (error) => process.send(error.code));
  server.on('listening', () => process.send('listening'));
  server.listen(JSON.parse(process.env.WHERE));
}

const said = (worker) => event(worker, 'message').then(([message]) => message);
const where = (options) => ({ WHERE: JSON.stringify(options) });

// An address of one socket that somebody else holds.
async function taken() {
  const holder = net.createServer().listen(0, '127.0.0.1');
  await event(holder, 'listening');
  return [holder, holder.address().port];
}

const scenarios = {
  T03: {
    async primary() {
      const worker = cluster.fork();
      const [address] = await event(worker, 'listening');
      const body = await get(address.port);
      return [body === '1' && address.port > 0, `${Object.keys(address).sort().join(', ')}; port is ${typeof address.port}, never 0`];
    },
  },
  T04: {
    async primary() {
      const ports = [new Set(), new Set()];
      for (let i = 0; i < 3; i++) {
        const seen = [];
        const worker = cluster.fork();
        worker.on('listening', (address) => seen.push(address.port));
        await until(() => seen.length === 2);
        seen.forEach((port, index) => ports[index].add(port));
      }
      return [ports.every((set) => set.size === 1), 'two listen(0) give two ports, each shared by all workers'];
    },
    async worker() {
      await event(serve(), 'listening');
      serve();
    },
  },
  T27: {
    async primary() {
      const [, port] = await taken();
      const error = await said(cluster.fork(where({ port, host: '127.0.0.1' })));
      return [error === 'EADDRINUSE', `${error} in each worker`];
    },
    worker: listenThere,
  },
  T28: {
    async primary() {
      const [holder, port] = await taken();
      const first = await said(cluster.fork(where({ port, host: '127.0.0.1' })));
      await new Promise((resolve) => holder.close(resolve));
      const second = await said(cluster.fork(where({ port, host: '127.0.0.1' })));
      return [first === 'EADDRINUSE' && second === 'listening', `${first}, then ${second}`];
    },
    worker: listenThere,
  },
  T29: {
    async primary() {
      if (process.getuid() === 0) process.setuid(65534);
      const error = await said(cluster.fork(where({ port: 42, host: '127.0.0.1' })));
      return [error === 'EACCES', `${error} in each worker`];
    },
    worker: listenThere,
  },
  T31: {
    async primary() {
      const [worker] = await listening(1, { PORT: 0 });
      worker.kill('SIGKILL');
      await event(worker, 'exit');
      const socket = await connect(worker.port);
      return [Boolean(socket), socket ? 'a connection waits for the next worker' : 'with the last worker the port is closed: connections are refused'];
    },
  },
  T32: {
    async primary() {
      const workers = await listening(2);
      let failed = 0;
      let going = true;
      const client = (async () => {
        while (going) failed += /^\d$/.test(await get(workers[0].port)) ? 0 : 1;
      })();
      workers[1].send('again');
      await said(workers[1]);
      going = false;
      await client;
      return [failed === 0, `a worker closes its server and listens again: ${failed} failed requests`];
    },
    worker() {
      const server = serve();
      process.on('message', () => server.close(() => server.listen(0, '127.0.0.1', () => process.send('again'))));
    },
  },
  T33: {
    async primary() {
      const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zn-'));
      const file = path.join(folder, 'socket');
      try {
        const first = await said(cluster.fork(where({ path: file, readableAll: true, writableAll: true })));
        const mode = (fs.statSync(file).mode & 0o777).toString(8);
        const body = await get({ path: file });
        const stale = path.join(folder, 'stale');
        execFileSync('python3', ['-c', `import socket; socket.socket(socket.AF_UNIX).bind(${JSON.stringify(stale)})`]);
        const second = await said(cluster.fork(where({ path: stale })));
        return [body === 'served' && second === 'listening', `served, mode ${mode} when asked for; a stale file: ${second}`];
      } finally {
        fs.rmSync(folder, { recursive: true });
      }
    },
    worker: listenThere,
  },
  T34: {
    async primary() {
      const worker = cluster.fork(where({ port: 0, host: '::' }));
      const [address] = await event(worker, 'listening');
      const body = await get(address.port);
      return [body === 'served', `:: answers 127.0.0.1 too: ${body}`];
    },
    worker: listenThere,
  },
  T35: {
    async primary() {
      const code = `const cluster = require('cluster'); if (cluster.isPrimary) cluster.fork(); else require('http').createServer((q, r) => r.end('served')).listen({ fd: 3 });`;
      const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'zn-')), 'program.js');
      fs.writeFileSync(file, code);
      const [holder, port] = await taken();
      const child = spawn(process.execPath, [file], { stdio: ['ignore', 'ignore', 'ignore', holder._handle] });
      holder.close();
      const served = await (async () => {
        const end = Date.now() + 5000;
        while (Date.now() < end) {
          if ((await get(port, '/', { limit_ms: 300 })) === 'served') return true;
        }
        return false;
      })();
      child.kill();
      fs.rmSync(path.dirname(file), { recursive: true });
      return [served, served ? 'served on the descriptor that was passed' : 'not served'];
    },
  },
  T36: {
    async primary() {
      const worker = cluster.fork(where({ port: 0, host: '127.0.0.1', backlog: 77 }));
      const [address] = await event(worker, 'listening');
      const line = execFileSync('ss', ['-Hltn', `sport = :${address.port}`]).toString().trim().split(/\s+/);
      return [line[2] === '77', `listen(2) saw ${line[2]} of 77`];
    },
    worker: listenThere,
  },
  T37: {
    async primary() {
      const landed = {};
      cluster.on('message', (worker) => (landed[worker.id] = (landed[worker.id] ?? 0) + 1));
      const workers = [];
      for (const cap of [1, 2, 7]) workers.push(...(await listening(1, { CAP: cap })));
      for (let i = 0; i < 10; i++) await connect(workers[0].port);
      await until(() => Object.values(landed).reduce((sum, n) => sum + n, 0) === 10, 2000);
      const counts = workers.map((worker) => landed[worker.id] ?? 0).join('/');
      return [counts === '1/2/7', `caps of 1/2/7: 10 connections land ${counts}; a cap of 0 is none in Node 20`];
    },
    worker() {
      const server = serve();
      server.maxConnections = Number(process.env.CAP);
      server.on('connection', () => process.send('connection'));
    },
  },
  T38: {
    async primary() {
      let workers = await listening(2);
      const port = workers[0].port;
      const results = {};
      let going = true;
      const clients = Array.from({ length: 4 }, async () => {
        while (going) {
          const body = await get(port);
          const kind = /^\d+$/.test(body) ? 'answered' : body;
          results[kind] = (results[kind] ?? 0) + 1;
        }
      });
      for (let round = 0; round < 10; round++) {
        const next = await listening(1);
        const old = workers.shift();
        old.disconnect();
        await event(old, 'exit');
        workers.push(...next);
      }
      going = false;
      await Promise.all(clients);
      delete results.answered;
      const failed = Object.entries(results).map(([kind, count]) => `${count} ${kind}`).join(', ');
      return [failed === '', `10 workers replaced one by one by hand: ${failed || 'no request failed'}`];
    },
  },
};
run(scenarios);
