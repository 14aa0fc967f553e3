// Who answers, on Node's cluster; a worker that ends is replaced, as Node's documentation does it.
'use strict';

const cluster = require('node:cluster');
const http = require('node:http');

if (cluster.isPrimary) {
  for (let i = 0; i < Number(process.env.WORKERS); i++) cluster.fork();
  cluster.on('exit', () => cluster.fork());
} else {
  http
    .createServer((request, response) => {
      response.setHeader('Content-Type', 'text/plain');
      response.end(`${process.pid}\n`);
    })
    .listen(Number(process.env.PORT), '127.0.0.1');
}
